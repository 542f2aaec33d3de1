//! The machine: memory, limits, the clock, what the kernel grants to sockets.

use std::time::Duration;

use rustix::process::{Resource, getrlimit};
use rustix::time::{ClockId, clock_gettime};

use super::Finding;
use crate::ownership::expiry::DRIFT_PER_MILLE;
use crate::size::human;

/// Files that a node has open: one per segment and per table of RocksDB, and its connections.
const OPEN_FILES_ENOUGH: u64 = 65_536;
/// Below this a node with a few thousand segments does not start.
const OPEN_FILES_MIN: u64 = 4_096;
/// What a node takes beside its map cache: buffers, RocksDB's tables in memory, connections.
const MEMORY_BESIDE_CACHE: u64 = 256 << 20;
/// Of each direction of a socket; the same that the transport warns about.
const SOCKET_BUFFER_ENOUGH: u64 = 4 << 20;
/// For how long the two clocks are compared. Reading them takes a microsecond: that is 2 millionths.
const CLOCK_SPAN: Duration = Duration::from_millis(500);

pub(super) fn findings(map_cache_bytes: u64) -> Vec<Finding> {
    // A node takes all that it is granted.
    let limit = getrlimit(Resource::Nofile).maximum.unwrap_or(u64::MAX);
    let buffers = ["rmem_max", "wmem_max"].map(|name| read_number(&format!("/proc/sys/net/core/{name}")));
    let available = std::fs::read_to_string("/proc/meminfo").ok().and_then(|text| available_memory(&text));
    let mut findings = vec![kernel(), open_files(limit)];
    findings.extend(available.map(|available| memory(available, map_cache_bytes)));
    findings.push(clock(clock_rate_ppm(CLOCK_SPAN)));
    findings.extend(buffers.iter().flatten().min().map(|least| socket_buffers(*least)));
    findings
}

fn kernel() -> Finding {
    let release = std::fs::read_to_string("/proc/sys/kernel/osrelease").unwrap_or_default();
    Finding::ok("kernel", release.trim())
}

fn open_files(limit: u64) -> Finding {
    let found = match limit {
        u64::MAX => "no limit".to_owned(),
        limit => format!("at most {limit}"),
    };
    let advice = format!(
        "`ulimit -Hn {OPEN_FILES_ENOUGH}`, or LimitNOFILE={OPEN_FILES_ENOUGH} in the unit: every segment is an open file"
    );
    match limit {
        OPEN_FILES_ENOUGH.. => Finding::ok("open files", found),
        OPEN_FILES_MIN.. => Finding::warning("open files", found, advice),
        _ => Finding::wrong("open files", found, advice),
    }
}

fn memory(available: u64, map_cache_bytes: u64) -> Finding {
    let wanted = map_cache_bytes + MEMORY_BESIDE_CACHE;
    let found = format!("{} available, about {} wanted", human(available), human(wanted));
    if available >= wanted {
        return Finding::ok("memory", found);
    }
    Finding::warning("memory", found, "give the machine more, or make `[store] map_cache_bytes` smaller")
}

/// `MemAvailable` of /proc/meminfo, in bytes.
fn available_memory(meminfo: &str) -> Option<u64> {
    let line = meminfo.lines().find_map(|line| line.strip_prefix("MemAvailable:"))?;
    Some(line.trim().strip_suffix(" kB")?.parse::<u64>().ok()? << 10)
}

/// How much faster the clock that leases go by runs than the machine's own oscillator, in millionths.
fn clock_rate_ppm(span: Duration) -> f64 {
    let read = |clock| {
        let now = clock_gettime(clock);
        Duration::new(now.tv_sec.unsigned_abs(), now.tv_nsec as u32)
    };
    let both = || (read(ClockId::Boottime), read(ClockId::MonotonicRaw));
    let from = both();
    std::thread::sleep(span);
    let to = both();
    let (steered, raw) = (to.0.saturating_sub(from.0), to.1.saturating_sub(from.1));
    (steered.as_secs_f64() / raw.as_secs_f64().max(f64::MIN_POSITIVE) - 1.0) * 1e6
}

fn clock(ppm: f64) -> Finding {
    let bound = f64::from(DRIFT_PER_MILLE) * 1000.0;
    let found = format!("{ppm:+.0} millionths against the oscillator, leases allow for {bound:.0}");
    if ppm.abs() < bound / 4.0 {
        return Finding::ok("clock", found);
    }
    Finding::wrong(
        "clock",
        found,
        "something steers the clock hard: see `chronyc tracking` or `timedatectl timesync-status`; leases are not safe with it",
    )
}

fn socket_buffers(most: u64) -> Finding {
    let found = format!("at most {}", human(most));
    if most >= SOCKET_BUFFER_ENOUGH {
        return Finding::ok("socket buffers", found);
    }
    let advice =
        "small ones lose packets under bursts: `sysctl -w net.core.rmem_max=8388608 net.core.wmem_max=8388608`";
    Finding::warning("socket buffers", found, advice)
}

fn read_number(path: &str) -> Option<u64> {
    std::fs::read_to_string(path).ok()?.trim().parse().ok()
}

#[cfg(test)]
mod tests {
    use super::super::Level;
    use super::*;

    #[test]
    fn limits_are_judged_by_what_a_node_uses() {
        let levels = [u64::MAX, 65_536, 8_192, 1_024].map(|limit| open_files(limit).level);
        assert_eq!(levels, [Level::Ok, Level::Ok, Level::Warning, Level::Wrong]);
        assert_eq!(socket_buffers(8 << 20).level, Level::Ok);
        assert_eq!(socket_buffers(212_992).level, Level::Warning, "Debian's default");
        assert_eq!(memory(1 << 30, 64 << 20).level, Level::Ok);
        assert_eq!(memory(1 << 30, 1 << 30).level, Level::Warning);
    }

    #[test]
    fn the_clock_is_wrong_long_before_leases_are() {
        assert_eq!(clock(-70.0).level, Level::Ok, "as NTP steers it");
        assert_eq!(clock(500.0).level, Level::Ok, "as fast as the kernel slews it");
        assert_eq!(clock(5_000.0).level, Level::Wrong);
        assert_eq!(clock(-5_000.0).level, Level::Wrong);
        assert!(clock_rate_ppm(Duration::from_millis(20)).is_finite());
    }

    #[test]
    fn available_memory_is_read_from_the_kernels_table() {
        let text = "MemTotal:       24589956 kB\nMemAvailable:    2048 kB\nBuffers: 1 kB\n";
        assert_eq!(available_memory(text), Some(2 << 20));
        assert_eq!(available_memory("MemTotal: 1 kB\n"), None);
    }
}
