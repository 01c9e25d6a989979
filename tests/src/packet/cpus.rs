//! Two CPUs on the same maps, of which the test says whose turn it is at every call that reads or writes
//! a flow. Other tables don't change meanwhile.

use std::{
    collections::VecDeque,
    sync::{Condvar, Mutex, MutexGuard, PoisonError},
    thread,
};

use proxy_common::{
    abi::{
        Addr, AffinityEntry, AffinityKey, AttemptFailure, Backend, BackendStats, Counter, Device,
        FlowEntry, FragmentKey, FragmentPorts, Frontend, FrontendKey, PortRange, Service,
        ServiceStats, SockAddr, Tuple,
    },
    datapath::{
        conntrack::{Amended, Change, Conntrack, Table},
        fake::Maps,
        flow::Flow,
        lookup::Tables,
        path::{Node, Route, Way},
        schedule::Draw,
    },
};

/// Turns in their order: a CPU, and how many calls it makes.
pub type Plan = Vec<(usize, u32)>;

/// To the end of its packet.
pub const ALL: u32 = u32::MAX;

#[derive(Debug)]
struct Shared {
    maps: Mutex<Maps>,
    turns: Mutex<VecDeque<(usize, u32)>>,
    next: Condvar,
}

/// The maps, as one CPU sees them.
#[derive(Debug)]
pub struct Cpu<'a> {
    number: usize,
    shared: &'a Shared,
}

/// Plays both CPUs on the same maps, in turns; `play` gets their number. Whether the plan was of use: none
/// of the turns that were to end early was longer than its packet.
pub fn in_turns<R: Send>(
    maps: Maps,
    plan: Plan,
    play: impl Fn(&Cpu<'_>, usize) -> R + Sync,
) -> (Maps, [R; 2], bool) {
    let shared = Shared {
        maps: Mutex::new(maps),
        turns: Mutex::new(plan.into()),
        next: Condvar::new(),
    };
    let cpu = |number| Cpu {
        number,
        shared: &shared,
    };
    let run = |number| {
        let cpu = cpu(number);
        (play(&cpu, number), cpu.finish())
    };
    let (results, early) = thread::scope(|scope| {
        let other = scope.spawn(|| run(1));
        let (first, first_early) = run(0);
        let (second, second_early) = other.join().expect("the other CPU's packet");
        ([first, second], first_early || second_early)
    });
    let maps = shared.maps.into_inner();
    (
        maps.unwrap_or_else(PoisonError::into_inner),
        results,
        !early,
    )
}

fn locked<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

impl Cpu<'_> {
    fn maps(&self) -> MutexGuard<'_, Maps> {
        locked(&self.shared.maps)
    }

    /// The maps, when it is its turn.
    fn turn(&self) -> MutexGuard<'_, Maps> {
        let mut turns = locked(&self.shared.turns);
        loop {
            match turns.front_mut() {
                Some((_, 0)) => {
                    turns.pop_front();
                    self.shared.next.notify_all();
                }
                Some((number, left)) if *number == self.number => {
                    *left -= 1;
                    break;
                }
                Some(_) => {
                    turns = (self.shared.next.wait(turns)).unwrap_or_else(PoisonError::into_inner);
                }
                None => break,
            }
        }
        self.maps()
    }

    /// Gives up the turns it has not used. Whether any of them was to end early.
    fn finish(&self) -> bool {
        let mut turns = locked(&self.shared.turns);
        let early = turns
            .iter()
            .any(|(number, left)| *number == self.number && (1..ALL / 2).contains(left));
        turns.retain(|(number, _)| *number != self.number);
        self.shared.next.notify_all();
        early
    }
}

impl Tables for Cpu<'_> {
    fn frontend(&self, key: &FrontendKey) -> Option<Frontend> {
        self.maps().frontend(key)
    }

    fn service(&self, id: u32) -> Option<Service> {
        self.maps().service(id)
    }

    fn slot(&self, index: u32) -> Option<u32> {
        self.maps().slot(index)
    }

    fn backend(&self, id: u32) -> Option<Backend> {
        self.maps().backend(id)
    }

    fn affinity(&self, key: &AffinityKey) -> Option<AffinityEntry> {
        Tables::affinity(&*self.maps(), key)
    }

    fn set_affinity(&self, key: &AffinityKey, entry: &AffinityEntry) -> bool {
        self.maps().set_affinity(key, entry)
    }

    fn random(&self) -> u32 {
        self.maps().random()
    }

    fn now_ns(&self) -> u64 {
        self.maps().now_ns()
    }

    fn service_stats(&self, id: u32) -> Option<ServiceStats> {
        Tables::service_stats(&*self.maps(), id)
    }

    fn backend_stats(&self, id: u32) -> Option<BackendStats> {
        Tables::backend_stats(&*self.maps(), id)
    }

    fn add_active(&self, backend_id: u32, change: i64) {
        self.maps().add_active(backend_id, change);
    }

    fn note_answer(&self, backend_id: u32) {
        self.maps().note_answer(backend_id);
    }

    fn note_failure(&self, failure: &AttemptFailure) {
        self.maps().note_failure(failure);
    }

    fn pick(&self, draw: &Draw) -> u32 {
        self.maps().pick(draw)
    }

    fn burden(&self, draw: &Draw, id: u32) -> u64 {
        self.maps().burden(draw, id)
    }

    fn count(&self, counter: Counter) {
        self.maps().count(counter);
    }

    fn count_connection(&self, service: u32, backend_id: u32) {
        self.maps().count_connection(service, backend_id);
    }

    fn count_failure(&self, service: u32) {
        self.maps().count_failure(service);
    }
}

impl Conntrack for Cpu<'_> {
    fn find(&self, table: Table, key: &Tuple, into: &mut FlowEntry) -> bool {
        self.turn().find(table, key, into)
    }

    fn claim(&self, table: Table, key: &Tuple, entry: &FlowEntry) -> bool {
        self.turn().claim(table, key, entry)
    }

    fn put(&self, table: Table, key: &Tuple, entry: &FlowEntry) -> bool {
        self.turn().put(table, key, entry)
    }

    fn amend(&self, table: Table, key: &Tuple, change: &Change) -> Amended {
        self.turn().amend(table, key, change)
    }

    fn forget(&self, table: Table, key: &Tuple) -> bool {
        self.turn().forget(table, key)
    }

    fn lock(&self, key: &Tuple) -> bool {
        self.turn().lock(key)
    }

    fn unlock(&self, key: &Tuple) {
        self.turn().unlock(key);
    }

    fn timeout_ns(&self, protocol: u8, state: u8) -> u64 {
        self.maps().timeout_ns(protocol, state)
    }

    fn fragment(&self, key: &FragmentKey) -> Option<FragmentPorts> {
        self.maps().fragment(key)
    }

    fn put_fragment(&self, key: &FragmentKey, ports: &FragmentPorts) {
        self.maps().put_fragment(key, ports);
    }
}

impl Node for Cpu<'_> {
    fn snat_ports(&self) -> PortRange {
        self.maps().snat_ports()
    }

    fn inherited_until_ns(&self) -> u64 {
        self.maps().inherited_until_ns()
    }

    fn ifindex(&self) -> u32 {
        self.maps().ifindex()
    }

    fn device(&self, ifindex: u32) -> Option<Device> {
        self.maps().device(ifindex)
    }

    fn route(&self, flow: &Flow, dst: &SockAddr, into: &mut Route) -> Way {
        self.maps().route(flow, dst, into)
    }

    fn is_for_device(&self) -> bool {
        self.maps().is_for_device()
    }

    fn is_sent_on(&self) -> bool {
        self.maps().is_sent_on()
    }

    fn has_socket(&self, tuple: &Tuple) -> bool {
        self.maps().has_socket(tuple)
    }

    fn is_allowed(&self, service: u32, source: &Addr) -> bool {
        self.maps().is_allowed(service, source)
    }

    fn is_in_service_nets(&self, addr: &Addr) -> bool {
        self.maps().is_in_service_nets(addr)
    }
}
