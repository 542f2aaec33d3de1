//! What the system says of this process (proc(5)). What it does not say is told as zero.

use rustix::process::{Resource, getrlimit};
use rustix::time::{ClockId, clock_gettime};

/// In which part of a second `/proc/PID/stat` counts: 100 on every architecture that this is built for (time(7), USER_HZ).
const TICKS_PER_SECOND: f64 = 100.0;

/// The numbers of a process.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct ProcessFigures {
    /// CPU time, in user and system mode.
    pub cpu_seconds: f64,
    /// Bytes of memory in RAM.
    pub resident_bytes: u64,
    /// Open file descriptors.
    pub open_fds: u64,
    /// As many may be open; `None` is as many as the system has.
    pub max_fds: Option<u64>,
    /// When it was started, in seconds since 1970.
    pub started_seconds: f64,
}

impl ProcessFigures {
    /// This process, now.
    #[must_use]
    pub fn of_this() -> ProcessFigures {
        let read = |path| std::fs::read_to_string(path).unwrap_or_default();
        let cpu = clock_gettime(ClockId::ProcessCPUTime);
        // One of them is for looking.
        let open = std::fs::read_dir("/proc/self/fd").map_or(0, |entries| entries.count().saturating_sub(1));
        ProcessFigures {
            cpu_seconds: cpu.tv_sec as f64 + cpu.tv_nsec as f64 / 1e9,
            resident_bytes: resident_bytes(&read("/proc/self/status")),
            open_fds: open as u64,
            max_fds: getrlimit(Resource::Nofile).current,
            started_seconds: started_seconds(&read("/proc/self/stat"), &read("/proc/stat")),
        }
    }
}

fn resident_bytes(status: &str) -> u64 {
    let line = status.lines().find_map(|line| line.strip_prefix("VmRSS:")).unwrap_or_default();
    let kib = line.split_whitespace().next().and_then(|number| number.parse::<u64>().ok());
    kib.unwrap_or(0) * 1024
}

/// By `/proc/PID/stat`, and by `/proc/stat`, which tells when the system was started.
fn started_seconds(stat: &str, system: &str) -> f64 {
    // The name, in parentheses, may have any character; field 22 of proc(5) is the 20th behind it.
    let after = stat.rsplit_once(')').and_then(|(_, rest)| rest.split_whitespace().nth(19));
    let booted = system.lines().find_map(|line| line.strip_prefix("btime "));
    let number = |text: Option<&str>| text.and_then(|text| text.trim().parse::<f64>().ok());
    number(booted).zip(number(after)).map_or(0.0, |(booted, ticks)| booted + ticks / TICKS_PER_SECOND)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn fields_are_found_behind_any_name() {
        let rest = (3..=24).map(|field| format!("{field}00")).collect::<Vec<_>>().join(" ");
        assert_eq!(started_seconds(&format!("77 (a ) b) {rest}"), "cpu 1 2\nbtime 1000\n"), 1022.0);
        assert_eq!(started_seconds("", "btime 1000"), 0.0);
        assert_eq!(resident_bytes("VmPeak:\t 9 kB\nVmRSS:\t  12 kB\n"), 12 << 10);
    }

    #[test]
    fn this_process_has_memory_and_descriptors_and_began_in_the_past() {
        let figures = ProcessFigures::of_this();
        assert!(figures.resident_bytes > 0 && figures.open_fds >= 3 && figures.cpu_seconds > 0.0, "{figures:?}");
        assert!(figures.max_fds.is_none_or(|most| most >= figures.open_fds), "{figures:?}");
        assert!(figures.started_seconds > 1e9, "{figures:?}");
    }
}
