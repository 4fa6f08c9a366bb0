//! Descriptors that travel through a Unix socket beside bytes (`SCM_RIGHTS`).

use std::io;
use std::mem::MaybeUninit;
use std::os::fd::{AsRawFd, BorrowedFd, FromRawFd, OwnedFd, RawFd};

/// Room for so many descriptors in one message, whatever the sender puts together.
const MOST: usize = 16;
const DESCRIPTOR_BYTES: u32 = size_of::<RawFd>() as u32;

/// What the kernel writes or reads beside the bytes; aligned as it wants it.
#[repr(C, align(8))]
struct Control([MaybeUninit<u8>; 256]);

/// Sends bytes, and this descriptor with the first of them. How many bytes went.
pub fn send(socket: BorrowedFd<'_>, bytes: &[u8], descriptor: RawFd) -> io::Result<usize> {
    let mut control = Control([MaybeUninit::zeroed(); 256]);
    let mut part = libc::iovec { iov_base: bytes.as_ptr().cast_mut().cast(), iov_len: bytes.len() };
    // SAFETY: all zeros are a valid `msghdr`: no address, no parts, no control data.
    let mut message: libc::msghdr = unsafe { std::mem::zeroed() };
    message.msg_iov = &raw mut part;
    message.msg_iovlen = 1;
    message.msg_control = control.0.as_mut_ptr().cast();
    // SAFETY: only computes a length.
    message.msg_controllen = unsafe { libc::CMSG_SPACE(DESCRIPTOR_BYTES) } as _;
    // SAFETY: the control data has room for one header and one descriptor, which is what
    // `msg_controllen` says, so the first header and its data lie within it.
    let sent = unsafe {
        let header = libc::CMSG_FIRSTHDR(&raw const message);
        (*header).cmsg_level = libc::SOL_SOCKET;
        (*header).cmsg_type = libc::SCM_RIGHTS;
        (*header).cmsg_len = libc::CMSG_LEN(DESCRIPTOR_BYTES) as _;
        libc::CMSG_DATA(header).cast::<RawFd>().write_unaligned(descriptor);
        libc::sendmsg(socket.as_raw_fd(), &raw const message, libc::MSG_NOSIGNAL)
    };
    usize::try_from(sent).map_err(|_| io::Error::last_os_error())
}

/// Receives bytes, and the descriptors that came with them. None: the other side has closed.
pub fn receive(
    socket: BorrowedFd<'_>,
    bytes: &mut [u8],
    descriptors: &mut Vec<OwnedFd>,
) -> io::Result<usize> {
    let mut control = Control([MaybeUninit::zeroed(); 256]);
    let mut part = libc::iovec { iov_base: bytes.as_mut_ptr().cast(), iov_len: bytes.len() };
    // SAFETY: as in `send`.
    let mut message: libc::msghdr = unsafe { std::mem::zeroed() };
    message.msg_iov = &raw mut part;
    message.msg_iovlen = 1;
    message.msg_control = control.0.as_mut_ptr().cast();
    // SAFETY: only computes a length.
    let room = unsafe { libc::CMSG_SPACE(DESCRIPTOR_BYTES * MOST as u32) } as usize;
    message.msg_controllen = room.min(control.0.len()) as _;
    // SAFETY: the message describes `bytes` and `control`, which live through the call.
    let received =
        unsafe { libc::recvmsg(socket.as_raw_fd(), &raw mut message, libc::MSG_CMSG_CLOEXEC) };
    let received = usize::try_from(received).map_err(|_| io::Error::last_os_error())?;
    // SAFETY: the kernel has set `msg_controllen` to what it wrote, and the macros stay within it.
    // Each descriptor there has just been made for us and belongs to nobody yet.
    unsafe {
        let mut header = libc::CMSG_FIRSTHDR(&raw const message);
        while !header.is_null() {
            if (*header).cmsg_level == libc::SOL_SOCKET && (*header).cmsg_type == libc::SCM_RIGHTS {
                let length = (*header).cmsg_len as usize - libc::CMSG_LEN(0) as usize;
                let data = libc::CMSG_DATA(header).cast::<RawFd>();
                for index in 0..length / size_of::<RawFd>() {
                    let descriptor = data.add(index).read_unaligned();
                    descriptors.push(OwnedFd::from_raw_fd(descriptor));
                }
            }
            header = libc::CMSG_NXTHDR(&raw const message, header);
        }
    }
    if message.msg_flags & libc::MSG_CTRUNC != 0 {
        return Err(io::Error::other(
            "descriptors came for which there is no room: perhaps too few open files are allowed",
        ));
    }
    Ok(received)
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::io::{Read, Write};
    use std::os::fd::AsFd;
    use std::os::unix::net::UnixStream;

    #[test]
    fn a_descriptor_travels_with_its_bytes() {
        let (here, there) = UnixStream::pair().unwrap();
        let (mut left, right) = UnixStream::pair().unwrap();
        assert_eq!(send(here.as_fd(), b"take", right.as_raw_fd()).unwrap(), 4);
        assert_eq!((&here).write(b"none").unwrap(), 4);
        drop(right);
        let (mut bytes, mut taken) = ([0; 64], Vec::new());
        let mut got = 0;
        while got < 8 {
            got += receive(there.as_fd(), &mut bytes[got..], &mut taken).unwrap();
        }
        assert_eq!(&bytes[..got], b"takenone");
        assert_eq!(taken.len(), 1);
        UnixStream::from(taken.remove(0)).write_all(b"!").unwrap();
        let mut word = [0];
        left.read_exact(&mut word).unwrap();
        assert_eq!(&word, b"!");
        drop(here);
        assert_eq!(receive(there.as_fd(), &mut bytes, &mut taken).unwrap(), 0);
    }
}
