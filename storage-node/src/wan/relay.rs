//! What an emulated link does with each datagram: lose it, or deliver it at a certain time.
//!
//! Pure: time is passed in, randomness comes from a seed, so a test decides everything. Datagrams that leave at the
//! same time leave in the order of arrival; without jitter and reordering a link keeps its order.

use std::cmp::Reverse;
use std::collections::BinaryHeap;
use std::time::Duration;

use super::{DirectionSettings, IN_FLIGHT_BYTES_MAX};

/// Which way a datagram goes.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Direction {
    /// From clients to the target.
    ToTarget,
    /// From the target back.
    FromTarget,
}

impl Direction {
    /// The other one.
    #[must_use]
    pub fn back(self) -> Direction {
        match self {
            Direction::ToTarget => Direction::FromTarget,
            Direction::FromTarget => Direction::ToTarget,
        }
    }
}

/// A datagram and where it leaves.
#[derive(Clone, Debug)]
pub struct Packet<E> {
    /// Its contents.
    pub bytes: std::sync::Arc<[u8]>,
    /// Where it leaves.
    pub exit: E,
}

struct Waiting<E> {
    due: Duration,
    order: u64,
    direction: Direction,
    packet: Packet<E>,
}

impl<E> PartialEq for Waiting<E> {
    fn eq(&self, other: &Self) -> bool {
        self.order == other.order
    }
}

impl<E> Eq for Waiting<E> {}

impl<E> PartialOrd for Waiting<E> {
    fn partial_cmp(&self, other: &Self) -> Option<std::cmp::Ordering> {
        Some(self.cmp(other))
    }
}

impl<E> Ord for Waiting<E> {
    fn cmp(&self, other: &Self) -> std::cmp::Ordering {
        (self.due, self.order).cmp(&(other.due, other.order))
    }
}

#[derive(Default)]
struct Lane {
    /// When the bottleneck has sent everything it has accepted.
    free_at: Duration,
    in_flight_bytes: u64,
}

/// The datagrams under way on one link, both directions.
pub struct Relay<E> {
    lanes: [Lane; 2],
    waiting: BinaryHeap<Reverse<Waiting<E>>>,
    order: u64,
    random: u64,
}

impl<E: Clone> Relay<E> {
    /// An idle link; `seed` decides all chance.
    #[must_use]
    pub fn new(seed: u64) -> Relay<E> {
        Relay { lanes: Default::default(), waiting: BinaryHeap::new(), order: 0, random: seed | 1 }
    }

    /// Takes a datagram that arrived at `now`. `false` if it is lost.
    pub fn offer(
        &mut self,
        direction: Direction,
        settings: &DirectionSettings,
        now: Duration,
        packet: Packet<E>,
    ) -> bool {
        if settings.partition || packet.bytes.len() > settings.datagram_max || self.chance(settings.loss) {
            return false;
        }
        let size = packet.bytes.len() as u64;
        let lane = &mut self.lanes[direction as usize];
        if lane.in_flight_bytes + size > IN_FLIGHT_BYTES_MAX {
            return false;
        }
        let mut leaves = now;
        if settings.rate_bits > 0 {
            let start = lane.free_at.max(now);
            let queued = (start - now).as_nanos() * u128::from(settings.rate_bits) / 8 / 1_000_000_000;
            // The one being sent is not in the queue; without this a queue smaller than a datagram passes nothing.
            if queued > 0 && queued + u128::from(size) > u128::from(settings.queue_bytes) {
                return false;
            }
            let nanoseconds = u128::from(size) * 8 * 1_000_000_000 / u128::from(settings.rate_bits);
            leaves = start + Duration::from_nanos(u64::try_from(nanoseconds).unwrap_or(u64::MAX));
            lane.free_at = leaves;
        }
        let copies = 1 + u64::from(self.chance(settings.duplicate));
        for _ in 0..copies {
            let late = if self.chance(settings.reorder) {
                Duration::ZERO
            } else {
                settings.delay + self.jitter(settings.jitter)
            };
            self.lanes[direction as usize].in_flight_bytes += size;
            self.order += 1;
            self.waiting.push(Reverse(Waiting {
                due: leaves + late,
                order: self.order,
                direction,
                packet: packet.clone(),
            }));
        }
        true
    }

    /// When the next datagram leaves.
    #[must_use]
    pub fn next_due(&self) -> Option<Duration> {
        self.waiting.peek().map(|Reverse(waiting)| waiting.due)
    }

    /// The next datagram that is due at `now`.
    pub fn take_due(&mut self, now: Duration) -> Option<(Direction, Packet<E>)> {
        if self.next_due()? > now {
            return None;
        }
        let Reverse(waiting) = self.waiting.pop()?;
        self.lanes[waiting.direction as usize].in_flight_bytes -= waiting.packet.bytes.len() as u64;
        Some((waiting.direction, waiting.packet))
    }

    fn chance(&mut self, probability: f64) -> bool {
        probability > 0.0 && self.uniform() < probability
    }

    fn jitter(&mut self, most: Duration) -> Duration {
        if most.is_zero() { most } else { most.mul_f64(self.uniform()) }
    }

    /// From 0 up to 1, exclusive: xorshift64* (Vigna 2016, "An experimental exploration of Marsaglia's xorshift generators").
    fn uniform(&mut self) -> f64 {
        self.random ^= self.random >> 12;
        self.random ^= self.random << 25;
        self.random ^= self.random >> 27;
        (self.random.wrapping_mul(0x2545_f491_4f6c_dd1d) >> 11) as f64 / (1u64 << 53) as f64
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const MS: Duration = Duration::from_millis(1);
    const TO: Direction = Direction::ToTarget;

    fn packet(size: usize, exit: u32) -> Packet<u32> {
        Packet { bytes: vec![0; size].into(), exit }
    }

    fn drain(relay: &mut Relay<u32>, now: Duration) -> Vec<u32> {
        std::iter::from_fn(|| relay.take_due(now)).map(|(_, packet)| packet.exit).collect()
    }

    #[test]
    fn datagrams_leave_after_the_delay_in_order() {
        let settings = DirectionSettings { delay: MS * 30, ..Default::default() };
        let mut relay = Relay::new(1);
        for exit in 0..3 {
            assert!(relay.offer(TO, &settings, MS, packet(100, exit)));
        }
        assert_eq!(relay.next_due(), Some(MS * 31));
        assert_eq!(drain(&mut relay, MS * 30), Vec::<u32>::new());
        assert_eq!(drain(&mut relay, MS * 31), [0, 1, 2]);
    }

    #[test]
    fn what_is_larger_than_the_path_takes_is_lost() {
        let settings = DirectionSettings { datagram_max: 1000, ..Default::default() };
        let mut relay = Relay::new(1);
        assert!(relay.offer(TO, &settings, MS, packet(1000, 1)));
        assert!(!relay.offer(TO, &settings, MS, packet(1001, 2)));
        assert_eq!(drain(&mut relay, MS), [1]);
    }

    #[test]
    fn the_rate_spaces_datagrams_and_a_full_queue_drops() {
        // 1000 bytes take 1 ms; the queue holds two.
        let settings = DirectionSettings { rate_bits: 8_000_000, queue_bytes: 2000, ..Default::default() };
        let mut relay = Relay::new(1);
        let taken: Vec<bool> =
            (0..5).map(|exit| relay.offer(TO, &settings, Duration::ZERO, packet(1000, exit))).collect();
        assert_eq!(taken, [true, true, false, false, false]);
        assert_eq!(drain(&mut relay, MS), [0]);
        assert_eq!(drain(&mut relay, MS * 2), [1]);
        assert!(relay.offer(TO, &settings, MS * 2, packet(1000, 5)), "the queue has drained");
        assert!(relay.offer(Direction::FromTarget, &settings, MS * 2, packet(1000, 6)), "directions do not share");
    }

    #[test]
    fn a_partition_loses_all_and_loss_its_share() {
        let mut relay = Relay::new(7);
        let cut = DirectionSettings { partition: true, ..Default::default() };
        assert!(!relay.offer(TO, &cut, MS, packet(1, 0)));
        let lossy = DirectionSettings { loss: 0.25, ..Default::default() };
        let kept = (0..10_000).filter(|exit| relay.offer(TO, &lossy, MS, packet(1, *exit))).count();
        assert!((7_200..7_800).contains(&kept), "{kept}");
    }

    #[test]
    fn duplicates_and_overtaking() {
        let mut relay = Relay::new(1);
        let twice = DirectionSettings { duplicate: 1.0, delay: MS, ..Default::default() };
        relay.offer(TO, &twice, MS, packet(1, 1));
        let overtaking = DirectionSettings { reorder: 1.0, ..twice };
        relay.offer(TO, &DirectionSettings { duplicate: 0.0, ..overtaking }, MS, packet(1, 2));
        assert_eq!(drain(&mut relay, MS * 2), [2, 1, 1]);
    }

    #[test]
    fn what_is_under_way_is_bounded() {
        let settings = DirectionSettings { delay: MS, datagram_max: usize::MAX, ..Default::default() };
        let mut relay = Relay::new(1);
        let large = packet(1 << 20, 0);
        let taken = (0..200).filter(|_| relay.offer(TO, &settings, MS, large.clone())).count();
        assert_eq!(taken as u64, IN_FLIGHT_BYTES_MAX >> 20);
    }
}
