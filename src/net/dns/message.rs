//! Questions for name servers, and what counts as an answer to one.

use hickory_proto::op::{Message, MessageType, OpCode, Query, ResponseCode};
use hickory_proto::rr::{DNSClass, Name, RData, RecordType};
use std::net::IpAddr;

/// So often may one name lead to another.
const MAX_ALIASES: usize = 16;
/// So many addresses of a name are enough.
const MAX_ADDRESSES: usize = 64;

/// What a message that answers a question says.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Verdict {
    /// These are its addresses; none: it has none of this family.
    Addresses(Vec<IpAddr>),
    /// This is the zone's serial; none: that name is no zone.
    Serial(Option<u32>),
    /// There is no such name.
    NoSuchName,
    /// It did not fit: it is to be asked for over TCP.
    Truncated,
    /// This server cannot tell; another one perhaps can.
    Refused,
}

/// One question, as it goes over the wire.
pub(super) struct Question<'a> {
    /// To tell its answer from others; not to be guessed.
    pub id: u16,
    /// Of what.
    pub name: &'a Name,
    /// What of it.
    pub kind: RecordType,
}

impl Question<'_> {
    /// `None`: such a name cannot be asked for.
    pub(super) fn bytes(&self) -> Option<Vec<u8>> {
        let mut message = Message::new(self.id, MessageType::Query, OpCode::Query);
        message.metadata.recursion_desired = true;
        message.add_query(Query::query(self.name.clone(), self.kind));
        message.to_vec().ok()
    }

    /// What these bytes say. `None`: they are no answer to this question, but nonsense, or somebody
    /// else's attempt to give one.
    pub(super) fn judge(&self, bytes: &[u8]) -> Option<Verdict> {
        // Cheap, and most of what is not ours ends here.
        if bytes.get(..2)? != self.id.to_be_bytes() {
            return None;
        }
        let message = Message::from_vec(bytes).ok()?;
        let head = &message.metadata;
        let is_answer = head.message_type == MessageType::Response && head.op_code == OpCode::Query;
        let is_ours = match message.queries.as_slice() {
            [asked] => {
                *asked.name() == *self.name
                    && asked.query_type() == self.kind
                    && asked.query_class() == DNSClass::IN
            }
            // Some servers do not repeat a question that they refuse.
            [] => head.response_code != ResponseCode::NoError,
            _ => false,
        };
        if !is_answer || !is_ours {
            return None;
        }
        Some(match head.response_code {
            _ if head.truncation => Verdict::Truncated,
            ResponseCode::NoError => self.found(&message),
            ResponseCode::NXDomain => Verdict::NoSuchName,
            _ => Verdict::Refused,
        })
    }

    fn found(&self, message: &Message) -> Verdict {
        let records = || message.answers.iter().filter(|record| record.dns_class == DNSClass::IN);
        let mut name = self.name;
        for _ in 0..MAX_ALIASES {
            let alias = records().find_map(|record| match &record.data {
                RData::CNAME(alias) if record.name == *name => Some(&alias.0),
                _ => None,
            });
            let Some(alias) = alias else {
                break;
            };
            name = alias;
        }
        let mut own = records().filter(|record| record.name == *name);
        if self.kind == RecordType::SOA {
            return Verdict::Serial(own.find_map(|record| match &record.data {
                RData::SOA(soa) => Some(soa.serial),
                _ => None,
            }));
        }
        let mut addresses = Vec::new();
        for record in own {
            let address: IpAddr = match (&record.data, self.kind) {
                (RData::A(address), RecordType::A) => address.0.into(),
                (RData::AAAA(address), RecordType::AAAA) => address.0.into(),
                _ => continue,
            };
            if addresses.len() < MAX_ADDRESSES && !addresses.contains(&address) {
                addresses.push(address);
            }
        }
        Verdict::Addresses(addresses)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use hickory_proto::rr::Record;
    use hickory_proto::rr::rdata::{A, CNAME, SOA};

    fn name(text: &str) -> Name {
        Name::from_ascii(text).unwrap()
    }

    fn record(owner: &str, data: RData) -> Record {
        Record::from_rdata(name(owner), 60, data)
    }

    fn address(owner: &str, last: u8) -> Record {
        record(owner, RData::A(A::new(10, 0, 0, last)))
    }

    fn alias(owner: &str, target: &str) -> Record {
        record(owner, RData::CNAME(CNAME(name(target))))
    }

    fn reply(question: &Question<'_>, answers: Vec<Record>) -> Message {
        let mut message = Message::response(question.id, OpCode::Query);
        message.add_query(Query::query(question.name.clone(), question.kind));
        message.answers = answers;
        message
    }

    fn judge(question: &Question<'_>, message: &Message) -> Option<Verdict> {
        question.judge(&message.to_vec().unwrap())
    }

    fn addresses(last: &[u8]) -> Option<Verdict> {
        let addresses = last.iter().map(|last| IpAddr::from([10, 0, 0, *last])).collect();
        Some(Verdict::Addresses(addresses))
    }

    #[test]
    fn answers_count_if_they_answer_this_question() {
        let db = name("db.test.");
        let question = Question { id: 0x1234, name: &db, kind: RecordType::A };
        let good = reply(&question, vec![address("DB.test.", 1), address("db.test.", 2)]);
        assert_eq!(judge(&question, &good), addresses(&[1, 2]));
        assert_eq!(question.judge(&question.bytes().unwrap()), None, "a question is no answer");
        let refused = |change: fn(&mut Message)| {
            let mut bad = good.clone();
            change(&mut bad);
            assert_eq!(judge(&question, &bad), None);
        };
        refused(|bad| bad.metadata.id ^= 1);
        refused(|bad| bad.metadata.op_code = OpCode::Status);
        refused(|bad| bad.queries.clear());
        refused(|bad| bad.queries.push(bad.queries[0].clone()));
        refused(|bad| bad.queries[0] = Query::query(name("other.test."), RecordType::A));
        refused(|bad| bad.queries[0] = Query::query(name("db.test."), RecordType::AAAA));
        refused(|bad| _ = bad.queries[0].set_query_class(DNSClass::CH));
        // What stands there about others is not believed.
        let poison = reply(&question, vec![address("other.test.", 9)]);
        assert_eq!(judge(&question, &poison), addresses(&[]));
    }

    #[test]
    fn aliases_are_followed_but_not_for_ever() {
        let db = name("db.test.");
        let question = Question { id: 7, name: &db, kind: RecordType::A };
        let chain = vec![
            address("c.test.", 3),
            alias("b.test.", "c.test."),
            alias("db.test.", "b.test."),
            address("db.test.", 9),
        ];
        assert_eq!(judge(&question, &reply(&question, chain)), addresses(&[3]));
        let circle = vec![alias("db.test.", "b.test."), alias("b.test.", "db.test.")];
        assert_eq!(judge(&question, &reply(&question, circle)), addresses(&[]));
        let many = (0..200).map(|last| address("db.test.", last)).collect();
        let Some(Verdict::Addresses(found)) = judge(&question, &reply(&question, many)) else {
            panic!("addresses");
        };
        assert_eq!(found.len(), MAX_ADDRESSES);
    }

    #[test]
    fn refusals_truncation_and_serials() {
        let db = name("db.test.");
        let question = Question { id: 7, name: &db, kind: RecordType::SOA };
        let soa = SOA::new(name("ns.test."), name("root.test."), 42, 1, 1, 1, 1);
        let mut message = reply(&question, vec![record("db.test.", RData::SOA(soa))]);
        assert_eq!(judge(&question, &message), Some(Verdict::Serial(Some(42))));
        message.metadata.truncation = true;
        assert_eq!(judge(&question, &message), Some(Verdict::Truncated));
        let mut empty = reply(&question, vec![]);
        assert_eq!(judge(&question, &empty), Some(Verdict::Serial(None)));
        empty.metadata.response_code = ResponseCode::NXDomain;
        assert_eq!(judge(&question, &empty), Some(Verdict::NoSuchName));
        empty.metadata.response_code = ResponseCode::ServFail;
        assert_eq!(judge(&question, &empty), Some(Verdict::Refused));
        empty.queries.clear();
        assert_eq!(judge(&question, &empty), Some(Verdict::Refused));
    }

    #[test]
    fn no_bytes_are_too_bad() {
        let db = name("db.test.");
        let question = Question { id: 7, name: &db, kind: RecordType::A };
        let answers = vec![alias("db.test.", "b.test."), address("b.test.", 3)];
        let good = reply(&question, answers).to_vec().unwrap();
        for length in 0..good.len() {
            question.judge(&good[..length]);
        }
        let mut seed = 1_u64;
        for _ in 0..20_000 {
            let mut bytes = good.clone();
            for _ in 0..3 {
                seed = seed.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1);
                let place = 2 + usize::try_from(seed >> 33).unwrap() % (bytes.len() - 2);
                bytes[place] = (seed >> 20) as u8;
            }
            question.judge(&bytes);
        }
        // A name that points at itself, and counts that promise more than there is.
        let mut loops = good[..12].to_vec();
        loops.extend([0xc0, 12, 0, 1, 0, 1]);
        assert_eq!(question.judge(&loops), None);
        let mut boast = good.clone();
        boast[6..8].fill(0xff);
        assert_eq!(question.judge(&boast), None);
    }
}
