//! What a read brings, from the log of a node to the client of a volume: bytes, and runs of zeroes that are nowhere as bytes.

use bytes::{Bytes, BytesMut};

use crate::error::{Error, ErrorKind};

/// Part of what was read. Parts follow each other without a gap, and cover together what was asked for.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum ReadPart {
    /// These bytes.
    Data(Bytes),
    /// This many zero bytes, which occupy no space.
    Zero(u32),
}

impl ReadPart {
    /// How many bytes it covers.
    #[must_use]
    pub fn length(&self) -> u64 {
        match self {
            ReadPart::Data(data) => data.len() as u64,
            ReadPart::Zero(length) => u64::from(*length),
        }
    }

    /// All in one piece; not copied when it is one already.
    #[must_use]
    pub fn joined(mut parts: Vec<ReadPart>) -> Bytes {
        if let [ReadPart::Data(_)] = parts.as_slice()
            && let Some(ReadPart::Data(data)) = parts.pop()
        {
            return data;
        }
        let mut joined = BytesMut::with_capacity(parts.iter().map(ReadPart::length).sum::<u64>() as usize);
        for part in parts {
            match part {
                ReadPart::Data(data) => joined.extend_from_slice(&data),
                ReadPart::Zero(length) => joined.resize(joined.len() + length as usize, 0),
            }
        }
        joined.freeze()
    }

    /// As answers have them: for each part its length and whether it is zeroes, and the data of the others in one payload.
    #[must_use]
    pub fn pack(parts: &[ReadPart]) -> (Vec<(u32, bool)>, Bytes) {
        let data = |part: &ReadPart| if let ReadPart::Data(data) = part { data.len() } else { 0 };
        let mut payload = BytesMut::with_capacity(parts.iter().map(data).sum());
        let lengths = parts.iter().map(|part| match part {
            ReadPart::Data(data) => {
                payload.extend_from_slice(data);
                (data.len() as u32, false)
            }
            ReadPart::Zero(length) => (*length, true),
        });
        (lengths.collect(), payload.freeze())
    }

    /// The same out of an answer; together they must cover `length` bytes.
    ///
    /// # Errors
    /// `Corrupt` when they do not.
    pub fn unpack(lengths: &[(u32, bool)], mut payload: Bytes, length: u32) -> Result<Vec<ReadPart>, Error> {
        let wrong = || Error::new(ErrorKind::Corrupt, "a node answered a read with parts that do not cover it");
        let mut covered = 0u64;
        let mut parts = Vec::with_capacity(lengths.len());
        for &(part, is_zero) in lengths {
            covered += u64::from(part);
            if is_zero {
                parts.push(ReadPart::Zero(part));
            } else {
                if payload.len() < part as usize {
                    return Err(wrong());
                }
                parts.push(ReadPart::Data(payload.split_to(part as usize)));
            }
        }
        if covered != u64::from(length) || !payload.is_empty() {
            return Err(wrong());
        }
        Ok(parts)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_parts_of_an_answer_must_cover_the_read() {
        let parts = [ReadPart::Zero(512), ReadPart::Data(Bytes::from(vec![1; 1024]))];
        let (lengths, payload) = ReadPart::pack(&parts);
        assert_eq!(lengths, [(512, true), (1024, false)]);
        assert_eq!(ReadPart::unpack(&lengths, payload.clone(), 1536).expect("covers"), parts);
        assert!(ReadPart::unpack(&lengths, payload.clone(), 2048).is_err(), "too little");
        assert!(ReadPart::unpack(&lengths, payload.slice(..100), 1536).is_err(), "payload cut");
        assert!(ReadPart::unpack(&[(512, true)], payload, 512).is_err(), "payload left over");
    }

    #[test]
    fn parts_are_joined_in_order_and_one_alone_is_not_copied() {
        let data = Bytes::from(vec![1; 1024]);
        let joined = ReadPart::joined(vec![ReadPart::Zero(512), ReadPart::Data(data.clone()), ReadPart::Zero(3)]);
        assert_eq!((&joined[..512], &joined[512..1536], &joined[1536..]), (&[0; 512][..], &data[..], &[0; 3][..]));
        assert_eq!(ReadPart::joined(vec![ReadPart::Data(data.clone())]).as_ptr(), data.as_ptr());
    }
}
