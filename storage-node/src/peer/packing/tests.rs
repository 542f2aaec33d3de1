//! Blocks packed and unpacked, whatever they hold, and what hostile bytes come to.

use client_lib::{BlockIndex, Epoch, Lsn, random};
use proptest::prelude::*;

use super::*;

const SLOW_LINK: f64 = 5e6;

fn block(index: u32, data: Option<Bytes>) -> VersionedBlock {
    VersionedBlock { block: BlockIndex(index), lsn: Lsn::new(Epoch(1), u64::from(index)), data }
}

fn filled(index: u32, fill: u8) -> VersionedBlock {
    block(index, Some(Bytes::from(vec![fill; BLOCK])))
}

fn text(index: u32) -> VersionedBlock {
    let line = format!("{index}: what a log file says, again and again with another number\n");
    block(index, Some(Bytes::from(line.repeat(BLOCK / line.len() + 1).into_bytes()).slice(..BLOCK)))
}

fn noise(index: u32) -> VersionedBlock {
    let mut draw = random::Sequence::new(u64::from(index) + 1);
    block(index, Some((0..BLOCK / 8).flat_map(|_| draw.bits().to_le_bytes()).collect::<Vec<u8>>().into()))
}

fn pressed(blocks: &[VersionedBlock], link: f64) -> PackedBlocks {
    let mut packed = pack_blocks(blocks);
    Compressor::default().press(&mut packed, link);
    packed
}

#[test]
fn blocks_come_out_as_they_went_in() {
    let blocks = vec![filled(3, 7), block(4, None), filled(9, 8)];
    let PackedBlocks { heads, payload, .. } = pack_blocks(&blocks);
    assert_eq!(unpack_blocks(&heads, payload).expect("unpacks"), blocks);
}

#[test]
fn of_zeroes_only_a_mark_is_sent_even_if_they_were_written_as_data() {
    let blocks = [filled(3, 7), filled(4, 0), block(5, None)];
    let PackedBlocks { heads, payload, freight, .. } = pack_blocks(&blocks);
    assert_eq!(heads.iter().map(|head| head.zero).collect::<Vec<_>>(), [false, true, true]);
    assert_eq!(payload.len(), BLOCK);
    let bytes = u64::from(BLOCK_SIZE);
    assert_eq!(freight, Freight { sent: bytes, wire: bytes, zero: 2 * bytes, ..Freight::default() });
    assert_eq!(unpack_blocks(&heads, payload).expect("unpacks")[1].data, None, "the receiver knows its checksum");
}

#[test]
fn a_payload_of_the_wrong_size_is_corrupt() {
    let PackedBlocks { heads, payload, .. } = pack_blocks(&[filled(3, 7)]);
    let error = unpack_blocks(&heads, payload.slice(1..)).expect_err("too short");
    assert_eq!(error.kind(), ErrorKind::Corrupt);
}

#[test]
fn what_shrinks_is_compressed_for_a_slow_link_and_not_for_a_fast_one() {
    let blocks: Vec<VersionedBlock> = (0..256).map(text).collect();
    let packed = pressed(&blocks, SLOW_LINK);
    assert!(packed.is_zstd);
    let Freight { sent, wire, .. } = packed.freight;
    assert_eq!((sent, wire), (256 * u64::from(BLOCK_SIZE), packed.payload.len() as u64));
    println!("text: {wire} bytes of {sent}");
    assert!(wire * 10 < sent, "{wire} of {sent}");
    assert_eq!(unpack_zstd(&packed.heads, &packed.payload).expect("unpacks"), blocks);
    assert!(!pressed(&blocks, 10e9).is_zstd, "the link is faster than any compressor");
    assert!(pressed(&blocks[..1], SLOW_LINK).is_zstd, "a single block, which a guest waits for");
}

#[test]
fn what_does_not_shrink_is_sent_as_it_is_after_a_look_at_a_sample() {
    let blocks: Vec<VersionedBlock> = (0..256).map(noise).collect();
    let compressor = Compressor::default();
    let mut packed = pack_blocks(&blocks);
    compressor.press(&mut packed, SLOW_LINK);
    assert!(!packed.is_zstd);
    assert_eq!(packed.freight.wire, packed.freight.sent);
    assert_eq!(compressor.speed(), None, "all of it was never compressed");
    // A sample may mislead: what does not shrink then is sent as it is all the same.
    let misleading: Vec<VersionedBlock> =
        (0..256).map(|index| if index % 85 == 0 { text(index) } else { noise(index) }).collect();
    let packed = pressed(&misleading, SLOW_LINK);
    assert!(!packed.is_zstd && packed.freight.wire == packed.freight.sent);
}

#[test]
fn a_compressor_that_was_interrupted_is_not_taken_for_a_slow_one() {
    let compressor = Compressor::default();
    compressor.note(1 << 20, 1.0);
    assert!(compressor.speed() > Some(150e6), "{:?}", compressor.speed());
    compressor.note(1 << 20, 0.001);
    assert_eq!(compressor.speed(), Some((1 << 20) as f64 * 1000.0));
    for _ in 0..200 {
        compressor.note(1 << 20, 1.0);
    }
    assert!(compressor.speed() < Some(2e6), "it is slow indeed: {:?}", compressor.speed());
    compressor.note(4096, 1e-9);
    assert!(compressor.speed() < Some(2e6), "too little to tell");
}

#[test]
fn a_frame_that_is_not_what_its_heads_announce_takes_no_memory() {
    let blocks: Vec<VersionedBlock> = (0..16).map(text).collect();
    let PackedBlocks { heads, payload, .. } = pressed(&blocks, SLOW_LINK);
    let refused = |heads: &[BlockHead], payload: &Bytes, said: &str| {
        let error = unpack_zstd(heads, payload).expect_err(said);
        assert_eq!(error.kind(), ErrorKind::Corrupt);
        assert!(error.message().contains(said), "{error}");
    };
    refused(&heads[1..], &payload, "for 61440 bytes of blocks");
    refused(&heads, &payload.slice(..payload.len() - 1), "cannot be expanded");
    refused(&heads, &Bytes::from_static(b"no frame"), "None bytes");
    let many = vec![heads[0]; FRAME_SIZE_MAX / BLOCK + 1];
    refused(&many, &Bytes::from(zstd::bulk::compress(&vec![7; many.len() * BLOCK], 1).expect("is small")), "at most");
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(32))]

    #[test]
    fn whatever_the_blocks_are_they_come_back(kinds in proptest::collection::vec(0..4u8, 0..40)) {
        let blocks: Vec<VersionedBlock> = (0u32..).zip(&kinds).map(|(index, kind)| match kind {
            0 => noise(index),
            1 => text(index),
            2 => block(index, None),
            _ => filled(index, 3),
        }).collect();
        let packed = pressed(&blocks, SLOW_LINK);
        let unpacked = match packed.is_zstd {
            true => unpack_zstd(&packed.heads, &packed.payload),
            false => unpack_blocks(&packed.heads, packed.payload.clone()),
        };
        prop_assert_eq!(unpacked.expect("unpacks"), blocks);
        prop_assert!(packed.freight.wire <= packed.freight.sent);
    }

    #[test]
    fn hostile_bytes_are_refused(bytes in proptest::collection::vec(any::<u8>(), 0..200), count in 0..5u32) {
        let heads: Vec<BlockHead> = pack_blocks(&(0..count).map(text).collect::<Vec<_>>()).heads;
        prop_assert!(unpack_zstd(&heads, &Bytes::from(bytes)).is_err());
    }
}

/// A frame of today is read whatever compressor will have made the next one.
#[test]
fn a_frame_that_was_kept_is_read() {
    let blocks = vec![text(3), block(4, None), filled(9, 8)];
    let PackedBlocks { heads, payload, .. } = pack_blocks(&blocks);
    let kept = crate::golden::read("peer-payload-zstd.hex");
    assert!(kept.len() * 10 < payload.len());
    assert_eq!(unpack_zstd(&heads, &Bytes::from(kept)).expect("reads"), blocks);
}
