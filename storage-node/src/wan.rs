//! A WAN inside the process: a UDP relay with delay, jitter, rate, queue, loss, reordering, duplication and
//! partition, for the demo and for tests. Needs no privileges.
//!
//! A [`WanLink`] lies between two places, each of which sends to an address that stands for the other: it arrives there late, and what is
//! answered goes back late. What goes one way shares the rate and the queue, whoever has begun. Directions are set separately and at any time.
//! Owns sockets and threads; what happens to a datagram is decided in [`relay`], which knows no sockets and no clock. Uses only the standard
//! library and socket2 (for buffer sizes). Does not rewrite contents. [`mod@file`] is what a user says of links.

pub mod file;
pub mod relay;

use std::collections::HashMap;
use std::io;
use std::net::{SocketAddr, UdpSocket};
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::mpsc::{Receiver, RecvTimeoutError, SyncSender, TrySendError, sync_channel};
use std::sync::{Arc, Mutex, MutexGuard};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use self::relay::{Direction, Packet, Relay};

/// How one direction of a link behaves.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct DirectionSettings {
    /// One-way delay.
    pub delay: Duration,
    /// Uniformly added to the delay, from zero to this.
    pub jitter: Duration,
    /// Bits per second; 0 is unlimited.
    pub rate_bits: u64,
    /// Bytes that may wait for the rate; what comes on top is dropped. Without a rate nothing waits for it.
    pub queue_bytes: u64,
    /// Largest datagram in bytes; larger ones are lost.
    pub datagram_max: usize,
    /// Probability of losing a datagram, 0 to 1.
    pub loss: f64,
    /// Probability of a datagram overtaking: it skips the delay.
    pub reorder: f64,
    /// Probability of delivering a datagram twice.
    pub duplicate: f64,
    /// Loses everything.
    pub partition: bool,
}

impl Default for DirectionSettings {
    fn default() -> DirectionSettings {
        DirectionSettings {
            delay: Duration::ZERO,
            jitter: Duration::ZERO,
            rate_bits: 0,
            queue_bytes: QUEUE_BYTES_DEFAULT,
            datagram_max: DATAGRAM_MAX_DEFAULT,
            loss: 0.0,
            reorder: 0.0,
            duplicate: 0.0,
            partition: false,
        }
    }
}

/// 2 MiB: 80 ms at 200 Mbit/s.
pub const QUEUE_BYTES_DEFAULT: u64 = 2 << 20;
/// Between providers packets have 1500 bytes, with the headers of IP and UDP.
pub const DATAGRAM_MAX_DEFAULT: usize = 1472;
/// Bytes on the way in one direction; more are dropped. 1 Gbit/s over 150 ms are 19 MiB.
pub const IN_FLIGHT_BYTES_MAX: u64 = 128 << 20;
/// Clients of one link; datagrams of further ones are dropped.
pub const CLIENTS_MAX: usize = 64;
/// Datagrams received and not yet taken up by the delaying thread; more are dropped.
const HANDOVER_MAX: usize = 16_384;
const SOCKET_BUFFER: usize = 8 << 20;
/// How often idle threads look whether they should stop.
const IDLE_TICK: Duration = Duration::from_millis(50);
const DATAGRAM_MAX: usize = 65_536;

/// The settings of a link, shared: changes take effect with the next datagram.
#[derive(Clone, Debug)]
pub struct LinkSettings {
    directions: Arc<Mutex<[DirectionSettings; 2]>>,
}

impl Default for LinkSettings {
    fn default() -> LinkSettings {
        LinkSettings::symmetric(DirectionSettings::default())
    }
}

impl LinkSettings {
    /// The same in both directions.
    #[must_use]
    pub fn symmetric(settings: DirectionSettings) -> LinkSettings {
        LinkSettings { directions: Arc::new(Mutex::new([settings; 2])) }
    }

    /// A round trip of `rtt`, half in each direction, and `rate_bits` per second (0: unlimited).
    #[must_use]
    pub fn rtt(rtt: Duration, rate_bits: u64) -> LinkSettings {
        LinkSettings::symmetric(DirectionSettings { delay: rtt / 2, rate_bits, ..DirectionSettings::default() })
    }

    /// Changes both directions.
    pub fn update(&self, change: impl Fn(&mut DirectionSettings)) {
        self.lock().iter_mut().for_each(change);
    }

    /// Changes one direction.
    pub fn update_direction(&self, direction: Direction, change: impl FnOnce(&mut DirectionSettings)) {
        change(&mut self.lock()[direction as usize]);
    }

    /// Loses everything in both directions, or stops doing so.
    pub fn partition(&self, partition: bool) {
        self.update(|settings| settings.partition = partition);
    }

    /// The present settings of a direction.
    #[must_use]
    pub fn direction(&self, direction: Direction) -> DirectionSettings {
        self.lock()[direction as usize]
    }

    fn lock(&self) -> MutexGuard<'_, [DirectionSettings; 2]> {
        self.directions.lock().expect("no code panics while holding the settings")
    }
}

#[derive(Debug, Default)]
struct Counts {
    packets: AtomicU64,
    bytes: AtomicU64,
    dropped_packets: AtomicU64,
    dropped_bytes: AtomicU64,
}

impl Counts {
    fn forwarded(&self, bytes: usize) {
        self.packets.fetch_add(1, Ordering::Relaxed);
        self.bytes.fetch_add(bytes as u64, Ordering::Relaxed);
    }

    fn dropped(&self, bytes: usize) {
        self.dropped_packets.fetch_add(1, Ordering::Relaxed);
        self.dropped_bytes.fetch_add(bytes as u64, Ordering::Relaxed);
    }
}

/// What went through one direction of a link so far.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct LinkCounters {
    /// Datagrams delivered; duplicates count.
    pub packets: u64,
    /// Their bytes, without UDP and IP headers.
    pub bytes: u64,
    /// Datagrams dropped for whatever reason.
    pub dropped_packets: u64,
    /// Their bytes.
    pub dropped_bytes: u64,
}

/// Where a datagram leaves the relay.
struct Exit {
    socket: Arc<UdpSocket>,
    to: SocketAddr,
}

struct Arrived {
    direction: Direction,
    at: Instant,
    packet: Packet<Arc<Exit>>,
}

struct Shared {
    settings: LinkSettings,
    counts: [Counts; 2],
    stop: AtomicBool,
}

/// Before a place: what is sent to `socket` goes there.
struct Front {
    socket: Arc<UdpSocket>,
    target: SocketAddr,
    way: Direction,
}

impl Front {
    fn open(target: SocketAddr, way: Direction) -> io::Result<Front> {
        Ok(Front { socket: Arc::new(loopback_socket(target)?), target, way })
    }
}

/// An emulated link. Stops when dropped.
pub struct WanLink {
    addresses: [SocketAddr; 2],
    shared: Arc<Shared>,
    threads: Vec<JoinHandle<()>>,
}

impl WanLink {
    /// The link between two places: [`address`](Self::address) stands for the second, the target, and
    /// [`address_back`](Self::address_back) for the first.
    ///
    /// # Errors
    /// When no socket or thread can be had.
    pub fn between(places: [SocketAddr; 2], settings: LinkSettings) -> io::Result<WanLink> {
        let [first, second] = places;
        let fronts = [Front::open(second, Direction::ToTarget)?, Front::open(first, Direction::FromTarget)?];
        let addresses = [fronts[0].socket.local_addr()?, fronts[1].socket.local_addr()?];
        let shared = Arc::new(Shared { settings, counts: Default::default(), stop: AtomicBool::new(false) });
        let (arrived, queue) = sync_channel(HANDOVER_MAX);
        let mut link = WanLink { addresses, shared: shared.clone(), threads: Vec::new() };
        let delaying = shared.clone();
        link.threads
            .push(std::thread::Builder::new().name("wan-delay".into()).spawn(move || deliver(&delaying, &queue))?);
        for front in fronts {
            let (shared, arrived) = (shared.clone(), arrived.clone());
            let receiving = move || receive_front(&shared, &front, &arrived);
            link.threads.push(std::thread::Builder::new().name("wan-front".into()).spawn(receiving)?);
        }
        Ok(link)
    }

    /// Where to send to instead of the target.
    #[must_use]
    pub fn address(&self) -> SocketAddr {
        self.addresses[0]
    }

    /// Where the target sends to instead of the first place.
    #[must_use]
    pub fn address_back(&self) -> SocketAddr {
        self.addresses[1]
    }

    /// The shared settings.
    #[must_use]
    pub fn settings(&self) -> &LinkSettings {
        &self.shared.settings
    }

    /// What a direction has carried and dropped.
    #[must_use]
    pub fn counters(&self, direction: Direction) -> LinkCounters {
        let counts = &self.shared.counts[direction as usize];
        LinkCounters {
            packets: counts.packets.load(Ordering::Relaxed),
            bytes: counts.bytes.load(Ordering::Relaxed),
            dropped_packets: counts.dropped_packets.load(Ordering::Relaxed),
            dropped_bytes: counts.dropped_bytes.load(Ordering::Relaxed),
        }
    }

    /// Ends the threads and frees the sockets; datagrams on the way are lost.
    pub fn stop(mut self) {
        self.join();
    }

    fn join(&mut self) {
        self.shared.stop.store(true, Ordering::Relaxed);
        for thread in self.threads.drain(..) {
            // A panic there has been reported by the thread itself.
            let _ = thread.join();
        }
    }
}

impl Drop for WanLink {
    fn drop(&mut self) {
        self.join();
    }
}

/// Receives from clients; opens a socket and a thread for the answers of each.
fn receive_front(shared: &Arc<Shared>, front: &Front, arrived: &SyncSender<Arrived>) {
    let Front { socket: front, target, way } = front;
    let (target, way) = (*target, *way);
    let mut clients: HashMap<SocketAddr, Arc<Exit>> = HashMap::new();
    let mut threads = Vec::new();
    receive(shared, front, way, arrived, |from| {
        if let Some(exit) = clients.get(&from) {
            return Some(exit.clone());
        }
        if clients.len() >= CLIENTS_MAX {
            return None;
        }
        let back = Arc::new(loopback_socket(target).ok()?);
        let exit = Arc::new(Exit { socket: back.clone(), to: target });
        let answer = Arc::new(Exit { socket: front.clone(), to: from });
        let (answering, arrived) = (shared.clone(), arrived.clone());
        let thread = std::thread::Builder::new().name("wan-back".into()).spawn(move || {
            receive(&answering, &back, way.back(), &arrived, |from| (from == target).then(|| answer.clone()));
        });
        threads.push(thread.ok()?);
        clients.insert(from, exit.clone());
        Some(exit)
    });
    for thread in threads {
        let _ = thread.join();
    }
}

fn receive(
    shared: &Shared,
    socket: &UdpSocket,
    direction: Direction,
    arrived: &SyncSender<Arrived>,
    mut exit: impl FnMut(SocketAddr) -> Option<Arc<Exit>>,
) {
    let mut buffer = vec![0; DATAGRAM_MAX];
    while !shared.stop.load(Ordering::Relaxed) {
        // A timeout to look at `stop`; anything else (a refused port) concerns one datagram only.
        let Ok((size, from)) = socket.recv_from(&mut buffer) else { continue };
        let Some(exit) = exit(from) else {
            shared.counts[direction as usize].dropped(size);
            continue;
        };
        let packet = Packet { bytes: buffer[..size].into(), exit };
        match arrived.try_send(Arrived { direction, at: Instant::now(), packet }) {
            Ok(()) => {}
            Err(TrySendError::Full(_)) => shared.counts[direction as usize].dropped(size),
            Err(TrySendError::Disconnected(_)) => return,
        }
    }
}

/// Takes up what arrived, and sends what is due.
fn deliver(shared: &Shared, queue: &Receiver<Arrived>) {
    let start = Instant::now();
    let mut relay = Relay::new(start.elapsed().as_nanos() as u64 ^ 0x9e37_79b9_7f4a_7c15);
    while !shared.stop.load(Ordering::Relaxed) {
        let wait = relay.next_due().map_or(IDLE_TICK, |due| due.saturating_sub(start.elapsed()).min(IDLE_TICK));
        // The system's timed wait is good to about 0.1 ms.
        let mut next = match queue.recv_timeout(wait) {
            Ok(arrived) => Some(arrived),
            Err(RecvTimeoutError::Timeout) => None,
            Err(RecvTimeoutError::Disconnected) => return,
        };
        let mut taken = 0;
        while let Some(Arrived { direction, at, packet }) = next {
            let settings = shared.settings.direction(direction);
            let size = packet.bytes.len();
            if !relay.offer(direction, &settings, at.saturating_duration_since(start), packet) {
                shared.counts[direction as usize].dropped(size);
            }
            taken += 1;
            // What is due must not wait behind a flood.
            next = if taken < 64 { queue.try_recv().ok() } else { None };
        }
        while let Some((direction, packet)) = relay.take_due(start.elapsed()) {
            match packet.exit.socket.send_to(&packet.bytes, packet.exit.to) {
                Ok(size) => shared.counts[direction as usize].forwarded(size),
                Err(_) => shared.counts[direction as usize].dropped(packet.bytes.len()),
            }
        }
    }
}

fn loopback_socket(target: SocketAddr) -> io::Result<UdpSocket> {
    let local: SocketAddr =
        if target.is_ipv4() { ([127, 0, 0, 1], 0).into() } else { (std::net::Ipv6Addr::LOCALHOST, 0).into() };
    let socket = UdpSocket::bind(local)?;
    // Best effort: with less the relay drops under bursts, and counts nothing of it.
    let options = socket2::SockRef::from(&socket);
    let _ = options.set_recv_buffer_size(SOCKET_BUFFER);
    let _ = options.set_send_buffer_size(SOCKET_BUFFER);
    socket.set_read_timeout(Some(IDLE_TICK))?;
    Ok(socket)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn socket() -> UdpSocket {
        let socket = UdpSocket::bind("127.0.0.1:0").expect("bound");
        socket.set_read_timeout(Some(Duration::from_secs(30))).expect("set");
        socket
    }

    fn at(socket: &UdpSocket) -> SocketAddr {
        socket.local_addr().expect("bound")
    }

    #[test]
    fn datagrams_cross_the_link_and_answers_come_back_late() {
        let (client, target) = (socket(), socket());
        let delay = Duration::from_millis(20);
        let link = WanLink::between([at(&client), at(&target)], LinkSettings::rtt(delay * 2, 0)).expect("started");
        let mut buffer = [0; 16];
        let start = Instant::now();
        client.send_to(b"ping", link.address()).expect("sent");
        let (size, from) = target.recv_from(&mut buffer).expect("arrived");
        assert_eq!(&buffer[..size], b"ping");
        target.send_to(b"pong", from).expect("sent");
        let (size, from) = client.recv_from(&mut buffer).expect("arrived");
        assert_eq!((&buffer[..size], from), (&b"pong"[..], link.address()));
        assert!(start.elapsed() >= delay * 2, "never early");
        let counters = link.counters(Direction::ToTarget);
        assert_eq!((counters.bytes, counters.dropped_packets), (4, 0));
        link.stop();
    }

    /// Each end had a link of its own before the other, so that what went one way had the rate twice.
    #[test]
    fn what_goes_one_way_between_two_places_shares_the_rate_whoever_has_begun() {
        let (first, second) = (socket(), socket());
        // 100 bytes take 100 ms from the first to the second, and nothing back.
        let settings = LinkSettings::default();
        settings.update_direction(Direction::ToTarget, |way| way.rate_bits = 8_000);
        let link = WanLink::between([at(&first), at(&second)], settings).expect("started");
        let mut buffer = [0; 128];
        second.send_to(b"hello", link.address_back()).expect("sent");
        let (_, from) = first.recv_from(&mut buffer).expect("arrived");
        let start = Instant::now();
        first.send_to(&[1; 100], link.address()).expect("sent");
        first.send_to(&[2; 100], from).expect("sent");
        for _ in 0..2 {
            assert_eq!(second.recv_from(&mut buffer).expect("arrived").0, 100);
        }
        assert!(start.elapsed() >= Duration::from_millis(200), "the second one waits for the first");
        // They are counted when they are sent, which may be after they were received.
        while link.counters(Direction::ToTarget).packets < 2 {
            std::thread::yield_now();
        }
        let bytes = [Direction::ToTarget, Direction::FromTarget].map(|way| link.counters(way).bytes);
        assert_eq!(bytes, [200, 5]);
    }

    #[test]
    fn a_partition_set_later_takes_effect() {
        let (client, target) = (socket(), socket());
        let link = WanLink::between([at(&client), at(&target)], LinkSettings::default()).expect("started");
        link.settings().partition(true);
        client.send_to(b"lost", link.address()).expect("sent");
        while link.counters(Direction::ToTarget).dropped_packets == 0 {
            std::thread::yield_now();
        }
        link.settings().partition(false);
        client.send_to(b"kept", link.address()).expect("sent");
        let mut buffer = [0; 16];
        let (size, _) = target.recv_from(&mut buffer).expect("arrived");
        assert_eq!(&buffer[..size], b"kept");
    }
}
