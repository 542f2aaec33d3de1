//! The mode of operation: XTS-AES-256 (IEEE 1619-2007, 5.3) over data units of 512 bytes.
//!
//! The cipher is that of the crate `aes`, which uses the processor's instructions and, where it has none, tables of bits that
//! take the same time whatever the key is. Only the mode is here: tweak, XOR, and many blocks at a time, which the crate `xts-mode`
//! hands over one by one, at an eighth of the speed (docs/decisions/0045). Units are whole, so there is no ciphertext stealing.

use aes::Aes256;
use aes::cipher::{Block, BlockCipherDecrypt, BlockCipherEncrypt, KeyInit};

/// A data unit, in bytes: a sector.
pub(super) const UNIT_BYTES: usize = 512;
/// A block of the cipher, in bytes.
const BLOCK_BYTES: usize = 16;
const BLOCKS: usize = UNIT_BYTES / BLOCK_BYTES;
/// x¹²⁸ in the field of the tweaks (IEEE 1619-2007, 5.2).
const POLYNOMIAL: u128 = 0x87;

/// A key of two halves, expanded: one for the data, one for the tweaks. Overwritten when it is dropped (the feature `zeroize` of `aes`).
pub(super) struct Xts {
    data: Aes256,
    tweak: Aes256,
}

impl Xts {
    pub(super) fn new(key: &[u8; 64]) -> Xts {
        let (data, tweak) = key.split_at(32);
        let half = |half: &[u8]| Aes256::new_from_slice(half).expect("half of a key has 32 bytes");
        Xts { data: half(data), tweak: half(tweak) }
    }

    /// Encrypts units in place, of which the first has this number.
    pub(super) fn encrypt(&self, first: u64, data: &mut [u8]) {
        for (number, unit) in (first..).zip(data.chunks_exact_mut(UNIT_BYTES)) {
            let tweaks = self.tweaks(number);
            xor(unit, &tweaks);
            self.data.encrypt_blocks(blocks(unit));
            xor(unit, &tweaks);
        }
    }

    /// Decrypts units in place, of which the first has this number, but for those of zeroes.
    pub(super) fn decrypt(&self, first: u64, data: &mut [u8]) {
        for (number, unit) in (first..).zip(data.chunks_exact_mut(UNIT_BYTES)) {
            if is_zero(unit) {
                continue;
            }
            let tweaks = self.tweaks(number);
            xor(unit, &tweaks);
            self.data.decrypt_blocks(blocks(unit));
            xor(unit, &tweaks);
        }
    }

    /// The tweaks of a unit's blocks: its number as a little-endian block, encrypted, times α for each further one.
    fn tweaks(&self, number: u64) -> [u128; BLOCKS] {
        let mut first: Block<Aes256> = u128::from(number).to_le_bytes().into();
        self.tweak.encrypt_block(&mut first);
        let mut tweak = u128::from_le_bytes(first.into());
        std::array::from_fn(|_| {
            let this = tweak;
            // No branch on what depends on the key.
            tweak = (this << 1) ^ (POLYNOMIAL & (this >> 127).wrapping_neg());
            this
        })
    }
}

fn blocks(unit: &mut [u8]) -> &mut [Block<Aes256>] {
    Block::<Aes256>::slice_as_chunks_mut(unit).0
}

fn xor(unit: &mut [u8], tweaks: &[u128; BLOCKS]) {
    for (block, tweak) in unit.as_chunks_mut::<BLOCK_BYTES>().0.iter_mut().zip(tweaks) {
        *block = (u128::from_le_bytes(*block) ^ tweak).to_le_bytes();
    }
}

fn is_zero(unit: &[u8]) -> bool {
    unit.as_chunks::<BLOCK_BYTES>().0.iter().all(|block| u128::from_le_bytes(*block) == 0)
}
