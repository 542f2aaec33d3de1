//! Blocks that say what they are: seed, block number and generation, mixed into every word of the block, so that a
//! block at the wrong place, from the wrong time or torn is told from the right one. They do not shrink: what waits for a slow
//! link is as much as was written.

/// Bytes of one block.
pub const BLOCK: usize = 4096;
const MARK: u64 = u64::from_le_bytes(*b"heliotst");
/// Words in front: mark, seed, block, generation.
const HEAD: u64 = 4;

/// The content of `block` at `generation`: what it is, and noise that is drawn from that.
pub fn fill(seed: u64, block: u64, generation: u64) -> Vec<u8> {
    let mut bytes = Vec::with_capacity(BLOCK);
    for word in [MARK, seed, block, generation] {
        bytes.extend_from_slice(&word.to_le_bytes());
    }
    let mut state = mixed(mixed(mixed(MARK ^ seed) ^ block) ^ generation);
    for _ in HEAD..BLOCK as u64 / 8 {
        state = state.wrapping_add(0x9e37_79b9_7f4a_7c15);
        bytes.extend_from_slice(&mixed(state).to_le_bytes());
    }
    bytes
}

/// The output function of splitmix64 (Steele, Lea and Flood 2014).
fn mixed(word: u64) -> u64 {
    let word = (word ^ (word >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    let word = (word ^ (word >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    word ^ (word >> 31)
}

/// The generation that `bytes` hold for `block`, 0 if never written; an error says what is there instead.
pub fn check(bytes: &[u8], seed: u64, block: u64) -> Result<u64, String> {
    if bytes.len() != BLOCK {
        return Err(format!("block {block}: {} bytes", bytes.len()));
    }
    if bytes.iter().all(|byte| *byte == 0) {
        return Ok(0);
    }
    let word = |index: usize| {
        let mut word = [0; 8];
        word.copy_from_slice(&bytes[index * 8..index * 8 + 8]);
        u64::from_le_bytes(word)
    };
    if (word(0), word(1), word(2)) != (MARK, seed, block) {
        return Err(format!("block {block}: holds mark {:x}, seed {}, block {}", word(0), word(1), word(2)));
    }
    let generation = word(3);
    if bytes != fill(seed, block, generation) {
        return Err(format!("block {block}: torn, begins with generation {generation}"));
    }
    Ok(generation)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_block_names_its_generation() {
        assert_eq!(check(&fill(1, 2, 3), 1, 2), Ok(3));
        assert_eq!(check(&[0; BLOCK], 1, 2), Ok(0));
    }

    #[test]
    fn misplaced_foreign_and_torn_blocks_are_told() {
        assert!(check(&fill(1, 2, 3), 1, 9).is_err());
        assert!(check(&fill(1, 2, 3), 9, 2).is_err());
        let mut torn = fill(1, 2, 3);
        torn[2048..].copy_from_slice(&fill(1, 2, 4)[2048..]);
        assert!(check(&torn, 1, 2).is_err());
    }
}
