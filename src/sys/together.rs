//! Several writes in one system call.
//!
//! Linux's `io_submit` carries out its orders one after the other, and on a socket that does not
//! block each of them is done, or refused, before the next one begins. It saves less by the calls
//! than by what lies between them: behind a write that wakes somebody the kernel likes to let him
//! run at once, in our place; here it gets to that when all have been woken.
//!
//! A peer that has gone raises SIGPIPE here, which Rust's runtime ignores from the start.

use std::io::{self, IoSlice};
use std::os::fd::RawFd;

/// So many at most.
pub const MOST: usize = 32;

/// `IOCB_CMD_PWRITEV`
const WRITE: u16 = 8;

/// `struct iocb`
#[derive(Clone, Copy, Default)]
#[repr(C)]
struct Order {
    index: u64,
    #[cfg(target_endian = "little")]
    key: u32,
    write_flags: u32,
    #[cfg(target_endian = "big")]
    key: u32,
    command: u16,
    priority: i16,
    descriptor: u32,
    slices: u64,
    slice_count: u64,
    offset: i64,
    reserved: u64,
    flags: u32,
    event_descriptor: u32,
}

/// `struct io_event`
#[derive(Clone, Copy, Default)]
#[repr(C)]
struct Done {
    index: u64,
    order: u64,
    result: i64,
    more: i64,
}

/// What the kernel needs for that.
#[derive(Debug)]
pub struct Together {
    /// `aio_context_t`
    context: libc::c_ulong,
    results: [Option<i64>; MOST],
}

impl Together {
    /// Some systems have no such call, or do not allow it.
    pub fn new() -> io::Result<Self> {
        let mut context: libc::c_ulong = 0;
        // SAFETY: the kernel writes one number, and wants it to be zero before.
        let result = unsafe { libc::syscall(libc::SYS_io_setup, MOST, &raw mut context) };
        if result != 0 {
            return Err(io::Error::last_os_error());
        }
        Ok(Self { context, results: [None; MOST] })
    }

    /// Writes all of these, each to its socket. What has no slices is left out. False: the kernel does
    /// not do that, and never will.
    pub fn write(&mut self, writes: &[(RawFd, &[IoSlice<'_>])]) -> bool {
        assert!(writes.len() <= MOST, "there is room for so many results");
        self.results = [None; MOST];
        let mut orders = [Order::default(); MOST];
        for ((index, order), (descriptor, slices)) in (0..).zip(&mut orders).zip(writes) {
            order.index = index;
            order.command = WRITE;
            order.descriptor = descriptor.cast_unsigned();
            // A slice is laid out as the kernel wants it.
            order.slices = slices.as_ptr() as u64;
            order.slice_count = slices.len() as u64;
        }
        let mut places = [std::ptr::null::<Order>(); MOST];
        let mut count = 0;
        for order in orders.iter().filter(|order| order.slice_count > 0) {
            places[count] = order;
            count += 1;
        }
        let (mut taken_all, mut is_allowed) = (0, true);
        let mut rest = &places[..count];
        while !rest.is_empty() {
            // SAFETY: orders, slices and bytes stay where they are until `collect` has seen that all
            // of them were dealt with.
            let taken = unsafe {
                libc::syscall(libc::SYS_io_submit, self.context, rest.len(), rest.as_ptr())
            };
            let taken = usize::try_from(taken).unwrap_or_else(|_| {
                is_allowed &= may_pass(&io::Error::last_os_error());
                0
            });
            taken_all += taken;
            // The one that was not taken has no result.
            rest = &rest[(taken + usize::from(taken < rest.len())).min(rest.len())..];
        }
        self.collect(taken_all);
        is_allowed
    }

    fn collect(&mut self, mut awaited: usize) {
        let mut events = [Done::default(); MOST];
        while awaited > 0 {
            let no_limit = std::ptr::null::<libc::timespec>();
            // SAFETY: there is room for so many events.
            let seen = unsafe {
                let first = events.as_mut_ptr();
                libc::syscall(
                    libc::SYS_io_getevents,
                    self.context,
                    awaited,
                    awaited,
                    first,
                    no_limit,
                )
            };
            let Ok(seen) = usize::try_from(seen) else {
                let error = io::Error::last_os_error();
                // To go on would mean to give away bytes that the kernel may still read.
                assert!(error.kind() == io::ErrorKind::Interrupted, "io_getevents: {error}");
                continue;
            };
            for event in &events[..seen] {
                let index = usize::try_from(event.index).expect("we have counted them");
                self.results[index] = Some(event.result);
            }
            awaited -= seen;
        }
    }

    /// What came of one of the last writes. `None`: it was not carried out.
    pub fn result(&self, index: usize) -> Option<io::Result<usize>> {
        let result = self.results[index].filter(|result| *result != -i64::from(libc::EINTR))?;
        Some(
            usize::try_from(result).map_err(|_| {
                io::Error::from_raw_os_error(i32::try_from(-result).unwrap_or(libc::EIO))
            }),
        )
    }
}

/// Whether this is trouble of one descriptor, or of a moment.
fn may_pass(error: &io::Error) -> bool {
    let passing = [libc::EAGAIN, libc::EINTR, libc::ENOMEM, libc::EBADF];
    error.raw_os_error().is_some_and(|number| passing.contains(&number))
}

impl Drop for Together {
    fn drop(&mut self) {
        // SAFETY: nothing is under way, and nobody can use it from now on.
        unsafe { libc::syscall(libc::SYS_io_destroy, self.context) };
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::io::Read;
    use std::os::fd::AsRawFd;
    use std::os::unix::net::UnixStream;

    #[test]
    fn each_gets_its_own_and_each_trouble_is_told() {
        let mut together = Together::new().expect("this kernel has it");
        let mut pairs: Vec<_> = (0..MOST).map(|_| UnixStream::pair().expect("sockets")).collect();
        for (ours, _) in &pairs {
            ours.set_nonblocking(true).expect("an option");
        }
        // One peer takes nothing more, and one has gone.
        let full = pairs[3].0.try_clone().expect("a copy");
        while io::Write::write(&mut &full, &[0; 10_000]).is_ok() {}
        let gone = pairs.remove(5).0;
        let texts: Vec<String> = (0..pairs.len()).map(|number| format!("to {number}")).collect();
        let slices: Vec<[IoSlice<'_>; 2]> = texts
            .iter()
            .map(|text| [IoSlice::new(b"word "), IoSlice::new(text.as_bytes())])
            .collect();
        let mut writes: Vec<(RawFd, &[IoSlice<'_>])> = Vec::new();
        for ((ours, _), slices) in pairs.iter().zip(&slices) {
            writes.push((ours.as_raw_fd(), slices));
        }
        writes.push((gone.as_raw_fd(), &slices[0]));
        for _ in 0..3 {
            assert!(together.write(&writes));
            for (index, (_, theirs)) in pairs.iter_mut().enumerate() {
                let result = together.result(index).expect("it was tried");
                if index == 3 {
                    assert_eq!(result.unwrap_err().kind(), io::ErrorKind::WouldBlock);
                    continue;
                }
                let expected = format!("word to {index}");
                assert_eq!(result.expect("it went"), expected.len());
                let mut read = vec![0; expected.len()];
                theirs.read_exact(&mut read).expect("it is there");
                assert_eq!(read, expected.as_bytes());
            }
            let last = together.result(writes.len() - 1).expect("it was tried");
            assert_eq!(last.unwrap_err().kind(), io::ErrorKind::BrokenPipe);
        }
    }

    /// What is no descriptor keeps nobody else from being served.
    #[test]
    fn one_that_is_refused_has_no_result() {
        let mut together = Together::new().expect("this kernel has it");
        let (ours, mut theirs) = UnixStream::pair().expect("sockets");
        ours.set_nonblocking(true).expect("an option");
        let slices = [IoSlice::new(b"word")];
        let (good, bad) = ((ours.as_raw_fd(), &slices[..]), (-1, &slices[..]));
        assert!(together.write(&[bad, good, bad, bad, good, bad]));
        let results: Vec<_> = (0..6).map(|index| together.result(index).is_some()).collect();
        assert_eq!(results, [false, true, false, false, true, false]);
        let mut read = [0; 8];
        theirs.read_exact(&mut read).expect("both are there");
        assert!(together.write(&[]) && together.write(&[bad, bad]));
        assert!(together.result(0).is_none());
    }
}
