//! What a client is told of its tracked parameters when it comes in.
//!
//! Most clients of a pool have its defaults, or differ in their `application_name` alone. So the
//! messages for the defaults are kept ready, and each stretch of them leaves as one.

use crate::ring::Ring;
use crate::session::params::{Parameters, Tracked, Values};
use crate::wire::emit::{self, Full};

/// One ParameterStatus for each tracked name that has a value, in their order, ready to be sent.
#[derive(Debug, Default)]
pub struct Statuses {
    bytes: Vec<u8>,
    /// Where the message of each name ends.
    ends: Vec<usize>,
}

impl Statuses {
    /// Of these values.
    pub fn new(parameters: &Parameters, tracked: &Tracked, values: &Values) -> Self {
        let mut statuses = Self::default();
        for (index, name) in tracked.names().iter().enumerate() {
            if let Some(value) = values.text(parameters.value(index)) {
                // A tag, a length, and two NULs.
                let bytes = 1 + 4 + name.len() + value.len() + 2;
                let mut ring = Ring::new(bytes.next_power_of_two());
                let written = emit::parameter_status(&mut ring, name.as_bytes(), value);
                assert_eq!(written, Ok(()), "it was measured");
                statuses.bytes.extend(ring.copy(ring.freed(), ring.filled()));
            }
            statuses.ends.push(statuses.bytes.len());
        }
        statuses
    }

    /// Writes those of a client, where these are of the `defaults`.
    pub fn write(
        &self,
        ring: &mut Ring,
        (parameters, defaults): (&Parameters, &Parameters),
        (tracked, values): (&Tracked, &Values),
    ) -> Result<(), Full> {
        let (mut from, mut to) = (0, 0);
        let names = tracked.names().iter().zip(&self.ends);
        for (index, (name, end)) in names.enumerate() {
            let value = parameters.value(index);
            if value != defaults.value(index) {
                push(ring, &self.bytes[from..to])?;
                from = *end;
                if let Some(value) = values.text(value) {
                    emit::parameter_status(ring, name.as_bytes(), value)?;
                }
            }
            to = *end;
        }
        push(ring, &self.bytes[from..to])
    }
}

fn push(ring: &mut Ring, bytes: &[u8]) -> Result<(), Full> {
    ring.push(bytes).then_some(()).ok_or(Full)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn told(
        statuses: &Statuses,
        all: (&Parameters, &Parameters),
        of: (&Tracked, &Values),
    ) -> String {
        let mut ring = Ring::new(1024);
        statuses.write(&mut ring, all, of).expect("it fits");
        let bytes = ring.copy(0, ring.filled());
        String::from_utf8(bytes).expect("text").replace('\0', "|")
    }

    #[test]
    fn whoever_differs_is_told_its_own_values_in_the_same_order() {
        let (tracked, mut values) = (Tracked::new(["search_path"]), Values::default());
        let mut defaults = tracked.unset();
        for (index, value) in [(0, "ISO"), (1, "UTF8"), (4, ""), (5, "a")] {
            defaults.set(index, values.intern(value.as_bytes()));
        }
        let mut mine = defaults.clone();
        mine.set(1, values.intern(b"LATIN1"));
        mine.set(2, values.intern(b"UTC"));
        let statuses = Statuses::new(&defaults, &tracked, &values);
        for parameters in [&defaults, &mine] {
            let mut ring = Ring::new(1024);
            for (index, name) in tracked.names().iter().enumerate() {
                if let Some(value) = values.text(parameters.value(index)) {
                    emit::parameter_status(&mut ring, name.as_bytes(), value).expect("it fits");
                }
            }
            let singly = String::from_utf8(ring.copy(0, ring.filled())).expect("text");
            let together = told(&statuses, (parameters, &defaults), (&tracked, &values));
            assert_eq!(together, singly.replace('\0', "|"));
        }
    }

    #[test]
    fn what_does_not_fit_is_said_to_be_too_much() {
        let (tracked, mut values) = (Tracked::new([]), Values::default());
        let mut defaults = tracked.unset();
        defaults.set(0, values.intern(&[b'x'; 100]));
        let statuses = Statuses::new(&defaults, &tracked, &values);
        let both = (&defaults, &defaults);
        assert_eq!(statuses.write(&mut Ring::new(64), both, (&tracked, &values)), Err(Full));
    }
}
