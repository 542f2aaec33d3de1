//! The cipher against the vectors of its standard and another implementation; keys sealed and opened; where they come from.

use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::path::Path;

use aes::Aes256;
use aes::cipher::KeyInit;
use proptest::prelude::*;
use xts_mode::{Xts128, get_tweak_default};

use super::octets::Octets;
use super::*;
use crate::error::ErrorKind;

/// XTS-AES-256, of IEEE 1619-2007, annex B: the key of vectors 10 to 14; the plaintext is 0 to 255, twice.
const KEY: &str = "27182818284590452353602874713526624977572470936999595749669676273141592653589793238462643383279502884197169399375105820974944592";
/// Vector 10, data unit ff.
const VECTOR_10: &str = "\
    1c3b3a102f770386e4836c99e370cf9bea00803f5e482357a4ae12d414a3e63b5d31e276f8fe4a8d66b317f9ac683f44680a\
    86ac35adfc3345befecb4bb188fd5776926c49a3095eb108fd1098baec70aaa66999a72a82f27d848b21d4a741b0c5cd4d5f\
    ff9dac89aeba122961d03a757123e9870f8acf1000020887891429ca2a3e7a7d7df7b10355165c8b9a6d0a7de8b062c4500d\
    c4cd120c0f7418dae3d0b5781c34803fa75421c790dfe1de1834f280d7667b327f6c8cd7557e12ac3a0f93ec05c52e0493ef\
    31a12d3d9260f79a289d6a379bc70c50841473d1a8cc81ec583e9645e07b8d9670655ba5bbcfecc6dc3966380ad8fecb17b6\
    ba02469a020a84e18e8f84252070c13e9f1f289be54fbc481457778f616015e1327a02b140f1505eb309326d68378f837459\
    5c849d84f4c333ec4423885143cb47bd71c5edae9be69a2ffeceb1bec9de244fbe15992b11b77c040f12bd8f6a975a44a0f9\
    0c29a9abc3d4d893927284c58754cce294529f8614dcd2aba991925fedc4ae74ffac6e333b93eb4aff0479da9a410e4450e0\
    dd7ae4c6e2910900575da401fc07059f645e8b7e9bfdef33943054ff84011493c27b3429eaedb4ed5376441a77ed43851ad7\
    7f16f541dfd269d50d6a5f14fb0aab1cbb4c1550be97f7ab4066193c4caa773dad38014bd2092fa755c824bb5e54c4f36ffd\
    a9fcea70b9c6e693e148c151";
/// Vectors 10 to 14: the data unit, how its ciphertext begins and how it ends.
const VECTORS: [(u64, &str, &str); 5] = [
    (0xff, "1c3b3a102f770386e4836c99e370cf9bea00803f5e482357a4ae12d414a3e63b", "c4f36ffda9fcea70b9c6e693e148c151"),
    (0xffff, "77a31251618a15e6b92d1d66dffe7b50b50bad552305ba0217a610688eff7e11", "a4f9e27b42af8100cb9d59cef9645803"),
    (0xff_ffff, "e387aaa58ba483afa7e8eb469778317ecf4cf573aa9d4eac23f2cdf914e4e200", "2263a1eef52dd6888c309f5a7d712826"),
    (
        0xffff_ffff,
        "bf53d2dade78e822a4d949a9bc6766b01b06a8ef70d26748c6a7fc36d80ae4c5",
        "4c82f335abb152c4a93411373aaa8220",
    ),
    (
        0xff_ffff_ffff,
        "64497e5a831e4a932c09be3e5393376daa599548b816031d224bbf50a818ed23",
        "d609d273ad5b0d59631c531f6a0a57b9",
    ),
];

fn octets<const LENGTH: usize>(text: &str) -> [u8; LENGTH] {
    *text.parse::<Octets<LENGTH>>().expect("is written so").bytes()
}

fn cipher(key: [u8; 64]) -> VolumeCipher {
    VolumeCipher::new(&VolumeKey::of(key))
}

fn plain() -> Bytes {
    (0..512u32).map(|number| number as u8).collect()
}

fn kek(byte: u8) -> Kek {
    Kek::parse(&[byte; 32]).expect("32 bytes are a key")
}

fn name(name: &str) -> crate::types::KeyName {
    name.parse().expect("a name")
}

#[tokio::test]
async fn data_units_are_those_of_the_standard() {
    let cipher = cipher(octets(KEY));
    for (unit, begins, ends) in VECTORS {
        let stored = cipher.encrypt(unit * 512, plain()).await;
        assert_eq!(stored[..32], octets::<32>(begins), "unit {unit:x}");
        assert_eq!(stored[496..], octets::<16>(ends), "unit {unit:x}");
        assert_eq!(cipher.decrypt(unit * 512, stored).await, plain(), "unit {unit:x}");
    }
    assert_eq!(cipher.encrypt(0xff * 512, plain()).await[..], octets::<512>(VECTOR_10));
}

#[tokio::test]
async fn requests_longer_than_a_turn_are_as_many_short_ones() {
    let cipher = cipher(octets(KEY));
    let data: Bytes = (0..3 * TURN_BYTES + 512).map(|number| (number * 7 / 3) as u8).collect();
    let whole = cipher.encrypt(1 << 40, data.clone()).await;
    for at in [0, TURN_BYTES - 512, TURN_BYTES, 3 * TURN_BYTES] {
        let alone = cipher.encrypt((1 << 40) + at as u64, data.slice(at..at + 512)).await;
        assert_eq!(alone, whole[at..at + 512], "{at}");
    }
    assert_eq!(cipher.decrypt(1 << 40, whole).await, data);
}

#[tokio::test]
async fn sectors_that_were_never_written_read_as_zeroes() {
    let cipher = cipher(octets(KEY));
    let mut stored = vec![0; 3 * 512];
    stored[512..1024].copy_from_slice(&cipher.encrypt(4096 + 512, plain()).await);
    let mut read = [ReadPart::Zero(4096), ReadPart::Data(stored.into())];
    cipher.decrypt_parts(0, &mut read).await;
    let expected = [&[0; 512][..], &plain(), &[0; 512]].concat();
    assert_eq!(read, [ReadPart::Zero(4096), ReadPart::Data(expected.into())]);
    let zeroes = cipher.encrypt(0, Bytes::from(vec![0; 512])).await;
    assert!(zeroes.iter().any(|byte| *byte != 0), "zeroes that are written are hidden like any data");
}

#[tokio::test]
async fn what_somebody_else_holds_is_not_changed() {
    let (cipher, mine) = (cipher(octets(KEY)), plain());
    let stored = cipher.encrypt(0, mine.clone()).await;
    assert!(stored != mine && mine == plain());
}

proptest! {
    #[test]
    fn it_is_what_another_implementation_makes_of_it(
        key in proptest::array::uniform(any::<[u8; 32]>()),
        unit in any::<u32>(),
        data in proptest::collection::vec(any::<u8>(), 1536),
    ) {
        let [first, second] = key.map(|half| Aes256::new_from_slice(&half).expect("32 bytes"));
        let mut expected = data.clone();
        Xts128::new(first, second).encrypt_area(&mut expected, 512, unit.into(), get_tweak_default);
        let cipher = cipher(key.concat().try_into().expect("64 bytes"));
        let runtime = tokio::runtime::Builder::new_current_thread().build().expect("a runtime");
        let offset = u64::from(unit) * 512;
        let stored = runtime.block_on(cipher.encrypt(offset, data.clone().into()));
        prop_assert_eq!(&stored[..], &expected[..]);
        prop_assert_eq!(runtime.block_on(cipher.decrypt(offset, stored)), data);
    }
}

#[test]
fn each_of_several_keys_opens_a_volume_and_no_other_does() {
    let (mut keys, key) = VolumeKeys::create(name("old"), &kek(1)).expect("made");
    keys.sealed.push(keys.seal(&key, name("new"), &kek(2)).expect("sealed"));
    for byte in [1, 2] {
        let opened = keys.open(&kek(byte)).expect("undamaged").expect("is one of them");
        assert_eq!(opened.reveal(), key.reveal());
    }
    assert!(keys.open(&kek(3)).expect("undamaged").is_none());
    let again = keys.seal(&key, name("new"), &kek(2)).expect("sealed");
    assert_ne!(again.sealed, keys.sealed[1].sealed, "the nonce is another one");
    let (other, _) = VolumeKeys::create(name("old"), &kek(1)).expect("made");
    assert_ne!(other.check, keys.check, "a volume's key is its own");
}

/// A store or a provider that exchanges what is sealed for two volumes of one key must not have one written under the key of the
/// other unnoticed.
#[test]
fn what_is_damaged_or_sealed_for_another_volume_is_refused() {
    let (keys, _) = VolumeKeys::create(name("k"), &kek(1)).expect("made");
    let (other, _) = VolumeKeys::create(name("k"), &kek(1)).expect("made");
    let exchanged = VolumeKeys { sealed: other.sealed, ..keys.clone() };
    let kind = |keys: &VolumeKeys| keys.open(&kek(1)).expect_err("refused").kind();
    assert_eq!(kind(&exchanged), ErrorKind::Corrupt);
    for at in [0, 12, 50, 91] {
        let mut damaged = keys.clone();
        let mut sealed = *damaged.sealed[0].sealed.bytes();
        sealed[at] ^= 1;
        damaged.sealed[0].sealed = sealed.into();
        assert_eq!(kind(&damaged), ErrorKind::Corrupt, "byte {at}");
    }
}

#[test]
fn keys_read_back_from_json_and_from_stored_bytes() {
    let (keys, key) = VolumeKeys::create(name("prod.key"), &kek(1)).expect("made");
    let json = serde_json::to_string(&keys).expect("plain data");
    assert!(json.contains("\"aes-256-xts\"") && json.contains(&keys.check.to_string()), "{json}");
    assert_eq!(serde_json::from_str::<VolumeKeys>(&json).expect("reads back"), keys);
    let bytes = postcard::to_stdvec(&keys).expect("plain data");
    assert_eq!(postcard::from_bytes::<VolumeKeys>(&bytes).expect("reads back"), keys);
    let shown = format!("{key:?} {:?} {:?} {keys:?}", kek(1), cipher(*key.reveal()));
    let hex = |bytes: &[u8]| bytes.iter().map(|byte| format!("{byte:02x}")).collect::<String>();
    assert!(!shown.contains(&hex(&key.reveal()[..8])) && !shown.contains(&hex(&[1; 8])), "{shown}");
}

#[test]
fn a_key_is_32_bytes_or_64_digits_and_what_is_none_is_not_repeated() {
    let text = kek(7).to_text();
    assert_eq!(text.as_str(), format!("{}\n", "07".repeat(32)));
    assert_eq!(Kek::parse(text.as_bytes()).expect("reads back").fingerprint(), kek(7).fingerprint());
    for odd in [&b""[..], b"secretsecret", &[7; 31], &[7; 33], "07".repeat(31).as_bytes(), "0g".repeat(32).as_bytes()] {
        let error = Kek::parse(odd).expect_err("is none").to_string();
        assert!(error.contains("bytes that are no key") && !error.contains("secret"), "{error}");
    }
}

fn write_key(path: &Path, byte: u8, mode: u32) {
    fs::write(path, kek(byte).to_text().as_bytes()).expect("is written");
    fs::set_permissions(path, fs::Permissions::from_mode(mode)).expect("is set");
}

async fn refused(source: KeySource, keys: &VolumeKeys) -> String {
    let error = source.unlock("disk", keys).await.expect_err("is refused");
    assert_eq!(error.kind(), ErrorKind::InvalidRequest, "{error}");
    error.to_string()
}

#[tokio::test]
async fn a_file_opens_what_its_key_does_and_must_be_its_owners_alone() {
    let directory = tempfile::tempdir().expect("a directory");
    let (keys, key) = VolumeKeys::create(name("prod"), &kek(1)).expect("made");
    let path = directory.path().join("any-name");
    let source = || KeySource::File(path.clone());
    assert!(refused(source(), &keys).await.contains("No such file"));
    write_key(&path, 2, 0o600);
    let error = refused(source(), &keys).await;
    assert!(
        error.contains("volume disk is encrypted") && error.contains("prod") && error.contains(&keys.openers()),
        "{error}"
    );
    assert!(error.contains(&format!("has key {} instead", kek(2).fingerprint())), "{error}");
    write_key(&path, 1, 0o640);
    assert!(refused(source(), &keys).await.contains("chmod 600"));
    write_key(&path, 1, 0o400);
    assert_eq!(source().unlock("disk", &keys).await.expect("opens").reveal(), key.reveal());
    let (named, _) = source().named("disk", None).await.expect("has a name");
    assert_eq!(named, name("any-name"));
}

#[tokio::test]
async fn a_directory_has_each_key_under_its_name() {
    let directory = tempfile::tempdir().expect("a directory");
    let (mut keys, key) = VolumeKeys::create(name("old"), &kek(1)).expect("made");
    keys.sealed.push(keys.seal(&key, name("new"), &kek(2)).expect("sealed"));
    let source = || KeySource::Directory(directory.path().to_owned());
    let error = refused(source(), &keys).await;
    assert!(error.contains("has none of the keys that open it, old (") && error.ends_with(')'), "{error}");
    write_key(&directory.path().join("old"), 3, 0o600);
    assert!(refused(source(), &keys).await.contains("instead"));
    write_key(&directory.path().join("new"), 2, 0o600);
    assert_eq!(source().unlock("disk", &keys).await.expect("opens").reveal(), key.reveal());
    assert!(source().named("disk", None).await.is_err(), "which of them?");
    let (_, found) = source().named("disk", Some(name("new"))).await.expect("is there");
    assert_eq!(found.fingerprint(), kek(2).fingerprint());
}

#[tokio::test]
async fn a_command_is_told_which_key_is_wanted_and_prints_it() {
    let directory = tempfile::tempdir().expect("a directory");
    let (keys, key) = VolumeKeys::create(name("prod"), &kek(1)).expect("made");
    write_key(&directory.path().join("prod-disk"), 1, 0o600);
    let command = |line: &str| KeySource::Command(format!("cd {}; {line}", directory.path().display()));
    let told = command("test ${#HELIO_KEY_FINGERPRINT} = 32 && cat $HELIO_KEY_NAME-$HELIO_VOLUME");
    assert_eq!(told.unlock("disk", &keys).await.expect("opens").reveal(), key.reveal());
    assert!(!format!("{told:?} {told}").contains("HELIO"), "what is in a command may be a secret");
    assert!(refused(command("exit 3"), &keys).await.contains("failed (exit status: 3)"));
    assert!(refused(command("echo not a key"), &keys).await.contains("printed 10 bytes that are no key"));
    assert!(refused(command("cat /dev/zero | head -c 100000"), &keys).await.contains("the key command"));
}

/// Whether a process is over, also one that nobody has waited for yet, whose letter in proc(5) is Z.
fn is_over(pid: &str) -> bool {
    let stat = fs::read_to_string(format!("/proc/{pid}/stat")).unwrap_or_default();
    stat.rsplit(')').next().is_none_or(|rest| rest.trim().is_empty() || rest.trim_start().starts_with('Z'))
}

/// A key service that does not answer, behind a network that drops what is sent, filled a machine: a command that took too long was not waited for any
/// more, and neither was one whose client had gone, and each went on, with a thread, and what it had started. Clients came again and again.
#[tokio::test(start_paused = true)]
async fn a_command_that_nobody_waits_for_is_ended_with_what_it_started() {
    let (keys, _) = VolumeKeys::create(name("prod"), &kek(1)).expect("made");
    for goes_away in [false, true] {
        let directory = tempfile::tempdir().expect("a directory");
        let line = "sleep 600 & echo $$ $! > new; mv new pids; wait";
        let source = KeySource::Command(format!("cd {}; {line}", directory.path().display()));
        let mut unlocking = Box::pin(source.unlock("disk", &keys));
        let pids = loop {
            // Never idle, so the clock stands still until the command runs.
            assert!(futures_util::poll!(&mut unlocking).is_pending(), "it prints nothing");
            match fs::read_to_string(directory.path().join("pids")) {
                Ok(pids) => break pids,
                Err(_) => tokio::task::yield_now().await,
            }
        };
        if goes_away {
            drop(unlocking);
        } else {
            let error = unlocking.await.expect_err("it takes too long").to_string();
            assert!(error.contains("has printed no key for 20s"), "{error}");
        }
        let pids: Vec<&str> = pids.split_whitespace().collect();
        assert_eq!(pids.len(), 2, "the shell and what it started");
        let end = std::time::Instant::now() + std::time::Duration::from_secs(60);
        while !pids.iter().all(|pid| is_over(pid)) {
            assert!(std::time::Instant::now() < end, "{pids:?} go on");
            std::thread::yield_now();
        }
    }
}
