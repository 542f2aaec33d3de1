//! Processes that are measured: that they end, and what the kernel counts of them.

use std::process::Child;

use anyhow::Context;

/// Kernel ticks per second in `/proc/PID/stat` (`sysconf(_SC_CLK_TCK)`, 100 on every Linux).
const TICKS_PER_SECOND: f64 = 100.0;

/// A process that ends with its owner.
pub(crate) struct Process(pub(crate) Child);

impl Drop for Process {
    fn drop(&mut self) {
        // Ended already is fine too.
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

/// CPU seconds that process `id` has used so far, all threads.
pub(crate) fn cpu_seconds(id: &str) -> anyhow::Result<f64> {
    let stat = std::fs::read_to_string(format!("/proc/{id}/stat"))?;
    // The name may hold anything up to the last parenthesis; utime and stime are fields 14 and 15 (proc(5)).
    let fields: Vec<&str> = stat.rsplit(')').next().context("no fields")?.split_whitespace().collect();
    let ticks: f64 =
        fields.get(11).context("utime")?.parse::<f64>()? + fields.get(12).context("stime")?.parse::<f64>()?;
    Ok(ticks / TICKS_PER_SECOND)
}

/// Bytes that process `id` has sent towards storage.
pub(crate) fn written_bytes(id: &str) -> anyhow::Result<u64> {
    field(&format!("/proc/{id}/io"), "write_bytes:")
}

/// Memory that process `id` holds, in bytes; with `peak`, the most it ever held.
pub(crate) fn resident_bytes(id: &str, peak: bool) -> anyhow::Result<u64> {
    let name = if peak { "VmHWM:" } else { "VmRSS:" };
    Ok(field(&format!("/proc/{id}/status"), name)? * 1024)
}

/// The number behind `name` in a file of lines of names and numbers.
fn field(path: &str, name: &str) -> anyhow::Result<u64> {
    let text = std::fs::read_to_string(path).with_context(|| path.to_owned())?;
    let value = text.lines().find_map(|line| line.strip_prefix(name)).with_context(|| format!("{name} in {path}"))?;
    Ok(value.split_whitespace().next().context("a number")?.parse()?)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn this_process_has_used_something() {
        assert!(cpu_seconds("self").expect("is told") >= 0.0);
        assert!(resident_bytes("self", false).expect("is told") > 0);
        assert!(resident_bytes("self", true).expect("is told") >= 4096);
        written_bytes("self").expect("is told");
    }
}
