//! The one program of a guest: `/init` of its initramfs, statically linked, with nothing but `std` and the C library below it.
//!
//! It loads the modules in `/modules`, in the order of their names, and writes `/dev/vda` past the page cache: one block at a time, each
//! of which says where it belongs and which write made it. Before a block is written over it is read, and must be what this
//! guest wrote last. So a disk that is another disk, or an older one, is found within a second.
//!
//! On the console it says `begins`, then every quarter of a second `wrote N, longest M ms`: how many blocks, and how long the
//! longest write took since it said so last. What is wrong it says as `WRONG ...`, and stops.

use std::fs::{File, OpenOptions};
use std::io::Write;
use std::os::fd::AsRawFd;
use std::os::unix::fs::{FileExt, OpenOptionsExt};
use std::time::{Duration, Instant};

const BLOCK: usize = 4096;
/// Few enough that each is written over again and again.
const BLOCKS: u64 = 1024;
/// Blocks between two flushes.
const FLUSH_EVERY: u64 = 32;
const WORD: Duration = Duration::from_millis(250);
const O_DIRECT: i32 = 0o40000;

unsafe extern "C" {
    fn mount(source: *const i8, target: *const i8, kind: *const i8, flags: u64, data: *const u8) -> i32;
    fn syscall(number: i64, ...) -> i64;
    fn reboot(command: i32) -> i32;
}

#[repr(C, align(4096))]
struct Buffer([u8; BLOCK]);

fn say(what: &str) {
    // The console may be busy: what cannot be said is said a moment later.
    let _ = writeln!(std::io::stdout(), "{what}");
}

fn load_modules() -> Result<(), String> {
    let mut names: Vec<_> = std::fs::read_dir("/modules")
        .map_err(|error| format!("/modules: {error}"))?
        .filter_map(|entry| Some(entry.ok()?.path()))
        .collect();
    names.sort();
    for name in names {
        let module = File::open(&name).map_err(|error| format!("{}: {error}", name.display()))?;
        // finit_module(2), without options.
        if unsafe { syscall(313, module.as_raw_fd(), c"".as_ptr(), 0) } != 0 {
            return Err(format!("{}: {}", name.display(), std::io::Error::last_os_error()));
        }
    }
    Ok(())
}

/// The disk, once the kernel has found it.
fn disk() -> Result<File, String> {
    let kind = c"devtmpfs".as_ptr();
    if unsafe { mount(kind, c"/dev".as_ptr(), kind, 0, std::ptr::null()) } != 0 {
        return Err(format!("/dev: {}", std::io::Error::last_os_error()));
    }
    load_modules()?;
    let began = Instant::now();
    loop {
        match OpenOptions::new().read(true).write(true).custom_flags(O_DIRECT).open("/dev/vda") {
            Ok(disk) => return Ok(disk),
            Err(error) if began.elapsed() > Duration::from_secs(30) => return Err(format!("/dev/vda: {error}")),
            Err(_) => std::thread::sleep(Duration::from_millis(50)),
        }
    }
}

/// The block `block` as the write `number` makes it.
fn fill(buffer: &mut Buffer, block: u64, number: u64) {
    let mut word = block.wrapping_mul(0x9e37_79b9_7f4a_7c15) ^ number.wrapping_mul(0xff51_afd7_ed55_8ccd);
    for chunk in buffer.0.chunks_exact_mut(8) {
        chunk.copy_from_slice(&word.to_le_bytes());
        word = word.rotate_left(5).wrapping_mul(0x2545_f491_4f6c_dd1d) ^ number;
    }
    buffer.0[..8].copy_from_slice(&block.to_le_bytes());
    buffer.0[8..16].copy_from_slice(&number.to_le_bytes());
}

fn check(found: &Buffer, block: u64, number: u64) -> Result<(), String> {
    let mut expected = Buffer([0; BLOCK]);
    if number > 0 {
        fill(&mut expected, block, number);
    }
    if found.0 == expected.0 {
        return Ok(());
    }
    let word = |at: usize| u64::from_le_bytes(found.0[at..at + 8].try_into().expect("eight bytes"));
    Err(format!("block {block} was written last by {number}, and says that it is block {} of {}", word(0), word(8)))
}

fn work() -> Result<(), String> {
    let disk = disk()?;
    say("begins");
    let mut newest = vec![0u64; BLOCKS as usize];
    let mut buffer = Buffer([0; BLOCK]);
    let (mut said, mut longest, mut state) = (Instant::now(), Duration::ZERO, 1u64);
    for number in 1.. {
        state = state.wrapping_mul(0x5851_f42d_4c95_7f2d).wrapping_add(0x1405_7b7e_f767_814f);
        let block = (state >> 33) % BLOCKS;
        let at = block * BLOCK as u64;
        let began = Instant::now();
        disk.read_exact_at(&mut buffer.0, at).map_err(|error| format!("read of block {block}: {error}"))?;
        check(&buffer, block, newest[block as usize]).map_err(|what| format!("before write {number}: {what}"))?;
        fill(&mut buffer, block, number);
        disk.write_all_at(&buffer.0, at).map_err(|error| format!("write of block {block}: {error}"))?;
        newest[block as usize] = number;
        if number % FLUSH_EVERY == 0 {
            disk.sync_data().map_err(|error| format!("flush: {error}"))?;
        }
        longest = longest.max(began.elapsed());
        if said.elapsed() >= WORD {
            say(&format!("wrote {number}, longest {} ms", longest.as_millis()));
            (said, longest) = (Instant::now(), Duration::ZERO);
        }
    }
    Ok(())
}

fn main() {
    if let Err(what) = work() {
        say(&format!("WRONG {what}"));
    }
    std::thread::sleep(Duration::from_secs(1));
    // Power off; the first process must not end.
    unsafe { reboot(0x4321_fedc) };
    loop {
        std::thread::sleep(Duration::from_secs(3600));
    }
}
