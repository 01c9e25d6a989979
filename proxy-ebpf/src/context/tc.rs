//! From a TC hook's skb to a packet, and from the kernel to what a node knows.

use core::{ffi::c_void, hint, mem::MaybeUninit, ptr};

use aya_ebpf::{
    bindings::{
        __sk_buff, BPF_F_INGRESS, BPF_F_MARK_MANGLED_0, BPF_F_PSEUDO_HDR, BPF_F_RECOMPUTE_CSUM,
        BPF_FIB_LKUP_RET_FRAG_NEEDED, BPF_FIB_LKUP_RET_FWD_DISABLED, BPF_FIB_LKUP_RET_NO_NEIGH,
        BPF_FIB_LKUP_RET_SUCCESS, BPF_FIB_LOOKUP_SKIP_NEIGH, bpf_fib_lookup as FibLookup,
        bpf_redir_neigh as RedirNeigh, bpf_sock_tuple as SockTuple,
    },
    btf_maps::lpm_trie::Key,
    helpers::generated::{
        bpf_csum_diff, bpf_fib_lookup, bpf_l4_csum_replace, bpf_redirect, bpf_redirect_neigh,
        bpf_sk_lookup_udp, bpf_sk_release, bpf_skb_adjust_room, bpf_skb_change_head,
        bpf_skb_change_tail, bpf_skb_load_bytes, bpf_skb_store_bytes, bpf_skb_vlan_pop,
        bpf_skc_lookup_tcp,
    },
};
use proxy_common::{
    abi::{
        Addr, Device, FlowEntry, FragmentKey, FragmentPorts, NetKey, PortRange, Protocol, SockAddr,
        SourceRangeKey, Tuple,
    },
    datapath::{
        answer::Budget,
        conntrack::{Amended, Change, Conntrack, SECOND_NS, Table, timeout_index},
        flow::Flow,
        path::{Hook, Node, Route, Way},
    },
    wire::{
        checksum::Diff,
        link::{ETHERNET_LENGTH, Link},
        packet::{Covered, MAX_SUM, Packet, Store},
    },
};

use super::tables::{ANY, NOEXIST, reads_the_maps};
use crate::maps;

/// A mode of bpf_skb_adjust_room: behind the link layer's header.
const BPF_ADJ_ROOM_MAC: u32 = 1;

const AF_INET: u32 = 2;
const AF_INET6: u32 = 10;

/// `PACKET_HOST`.
const PACKET_HOST: u32 = 0;

/// The network namespace of the skb's device.
const CURRENT_NETNS: u64 = u64::MAX;

/// Says in the skb's control block that it was redirected here. That block belongs to whatever handles
/// the packet: nothing between a redirection and the egress hook uses the part that programs reach,
/// and nothing on the wire can write it.
const SENT_ON: [u32; 2] = [u32::from_be_bytes(*b"kube"), u32::from_be_bytes(*b"port")];

/// Two in the frame and one beside it.
const MAX_TAGS: u8 = 3;

/// An skb, reached through helpers: they see it whole, wherever the kernel keeps its parts.
#[derive(Clone, Copy)]
pub(crate) struct Skb(*mut __sk_buff);

impl Skb {
    #[inline(always)]
    pub(crate) fn new(skb: *mut __sk_buff) -> Self {
        Self(skb)
    }

    #[inline(always)]
    fn mark(&self, words: [u32; 2]) {
        // SAFETY: the kernel passes a valid context, and lets programs write these words.
        unsafe {
            (&raw mut (*self.0).cb[0]).write_volatile(words[0]);
            (&raw mut (*self.0).cb[1]).write_volatile(words[1]);
        }
    }

    /// What the program returns to send the packet there: the kernel asks the gateway for its
    /// link-layer address, and fills it in.
    #[inline(always)]
    pub(crate) fn redirect(&self, hop: &Route) -> i32 {
        self.mark(SENT_ON);
        let mut neighbour = MaybeUninit::<RedirNeigh>::zeroed();
        let parameters = neighbour.as_mut_ptr();
        // SAFETY: all bits 0 are a value of it, and the helper takes its size.
        unsafe {
            if hop.gateway.is_v4() {
                (*parameters).nh_family = AF_INET;
                (*parameters).__bindgen_anon_1.ipv4_nh = hop.gateway.words[3];
            } else {
                (*parameters).nh_family = AF_INET6;
                (*parameters).__bindgen_anon_1.ipv6_nh = hop.gateway.words;
            }
            bpf_redirect_neigh(hop.ifindex, parameters, size_of::<RedirNeigh>() as i32, 0) as i32
        }
    }
}

impl Skb {
    /// What the program returns to send the packet back where it came from: out of the device it came
    /// in by, or into the stack that was about to send it.
    #[inline(always)]
    pub(crate) fn send_back(&self, hook: Hook) -> i32 {
        let flags = match hook {
            Hook::Ingress => 0,
            Hook::Egress => u64::from(BPF_F_INGRESS),
        };
        // SAFETY: plain helper call.
        unsafe { bpf_redirect(self.ifindex(), flags) as i32 }
    }
}

impl Packet for Skb {
    #[inline(always)]
    fn length(&self) -> u32 {
        // SAFETY: the kernel passes a valid context.
        unsafe { (&raw const (*self.0).len).read_volatile() }
    }

    #[inline(always)]
    fn load<const N: usize>(&self, offset: u32) -> Option<[u8; N]> {
        let mut bytes = MaybeUninit::<[u8; N]>::uninit();
        let to = bytes.as_mut_ptr().cast::<c_void>();
        // SAFETY: the helper writes N bytes, or zeroes them and fails.
        unsafe {
            if bpf_skb_load_bytes(self.0.cast(), offset, to, N as u32) != 0 {
                return None;
            }
            Some(bytes.assume_init())
        }
    }

    #[inline(always)]
    fn store<const N: usize>(&mut self, offset: u32, bytes: &[u8; N], how: Store) -> bool {
        let flags = match how {
            Store::Balanced => 0,
            Store::Counted => u64::from(BPF_F_RECOMPUTE_CSUM),
        };
        // SAFETY: the helper reads N bytes.
        unsafe { bpf_skb_store_bytes(self.0, offset, bytes.as_ptr().cast(), N as u32, flags) == 0 }
    }

    #[inline(always)]
    fn update_l4(&mut self, offset: u32, diff: Diff, covered: Covered, zero_is_none: bool) -> bool {
        let mut flags = match covered {
            Covered::PseudoHeader => u64::from(BPF_F_PSEUDO_HDR),
            Covered::Payload => 0,
        };
        if zero_is_none {
            flags |= u64::from(BPF_F_MARK_MANGLED_0);
        }
        // SAFETY: plain helper call. Size 0 means that `to` is a difference.
        unsafe { bpf_l4_csum_replace(self.0, offset, 0, u64::from(diff.0), flags) == 0 }
    }

    #[inline(always)]
    fn strip_vlan(&mut self, in_frame: u8) -> bool {
        // SAFETY: the kernel passes a valid context.
        let beside = u8::from(unsafe { (&raw const (*self.0).vlan_present).read_volatile() } != 0);
        // Each call takes one off, and the one behind it out of the frame.
        let tags = in_frame.saturating_add(beside);
        let mut taken = 0;
        while taken < MAX_TAGS {
            if taken >= tags {
                return true;
            }
            // SAFETY: plain helper call.
            if unsafe { bpf_skb_vlan_pop(self.0) } != 0 {
                return false;
            }
            taken += 1;
        }
        true
    }

    #[inline(always)]
    fn add_ethernet(&mut self) -> bool {
        // SAFETY: plain helper call.
        unsafe { bpf_skb_change_head(self.0, ETHERNET_LENGTH, 0) == 0 }
    }

    #[inline(always)]
    fn segment_size(&self) -> u32 {
        // SAFETY: the kernel passes a valid context.
        unsafe { (&raw const (*self.0).gso_size).read_volatile() }
    }

    #[inline(always)]
    fn sum(&self, offset: u32, length: u32) -> Option<u32> {
        let answers = maps::ANSWERS.get_ptr_mut(0)?;
        // SAFETY: this CPU's own element, and no program of ours interrupts another.
        let scratch = unsafe { &mut (*answers).scratch };
        if length == 0 || length > MAX_SUM {
            return None;
        }
        // Or LLVM, which knows the bounds, leaves the masks out, and the verifier doesn't know them.
        let length = (hint::black_box(length - 1) & (MAX_SUM - 1)) + 1;
        // What pads the last word.
        let last = (length - 1) & (MAX_SUM - 4);
        scratch[last as usize..][..4].fill(0);
        let bytes = scratch.as_mut_ptr().cast::<c_void>();
        // SAFETY: the helpers write `length` bytes, and read up to the end of the word of the last one:
        // neither is more than there are.
        unsafe {
            if bpf_skb_load_bytes(self.0.cast(), offset, bytes, length) != 0 {
                return None;
            }
            // 32 bits, or from 6.13 on folded to 16.
            Some(bpf_csum_diff(ptr::null_mut(), 0, bytes.cast(), last + 4, 0) as u32)
        }
    }

    #[inline(always)]
    fn cut(&mut self, length: u32) -> bool {
        // SAFETY: plain helper call. It takes a packet that is to be cut into many for one.
        unsafe { bpf_skb_change_tail(self.0, length, 0) == 0 }
    }

    #[inline(always)]
    fn make_room(&mut self, link: Link, length: u32) -> bool {
        // SAFETY: plain helper calls.
        let result = unsafe {
            match link {
                // For all frames, also with tags in them; bpf_redirect sends what begins at the MAC header.
                Link::Ethernet => bpf_skb_change_head(self.0, length, 0),
                // Here bpf_redirect sends what begins at the network header, and only this helper takes
                // it along.
                Link::None => bpf_skb_adjust_room(self.0, length as i32, BPF_ADJ_ROOM_MAC, 0),
            }
        };
        result == 0
    }
}

reads_the_maps!(Skb);

impl Budget for Skb {
    #[inline(always)]
    fn next_answer_ns(&self) -> u64 {
        match maps::ANSWERS.get_ptr(0) {
            // SAFETY: this CPU's own element.
            Some(answers) => unsafe { (*answers).next_ns },
            None => u64::MAX,
        }
    }

    #[inline(always)]
    fn set_next_answer_ns(&self, due_ns: u64) {
        if let Some(answers) = maps::ANSWERS.get_ptr_mut(0) {
            // SAFETY: this CPU's own element, and no program of ours interrupts another.
            unsafe { (*answers).next_ns = due_ns };
        }
    }
}

impl Conntrack for Skb {
    #[inline(always)]
    fn find(&self, table: Table, key: &Tuple, into: &mut FlowEntry) -> bool {
        // SAFETY: an element may be replaced while it is copied, but then by one of the same flow; it
        // stays allocated until this program ends.
        let found = unsafe {
            match table {
                Table::Established => maps::FLOWS.get(key),
                Table::HalfOpen => maps::HALF_OPEN.get(key),
            }
        };
        match found {
            Some(entry) => {
                *into = *entry;
                true
            }
            None => false,
        }
    }

    #[inline(always)]
    fn claim(&self, table: Table, key: &Tuple, entry: &FlowEntry) -> bool {
        write(table, key, entry, NOEXIST)
    }

    #[inline(always)]
    fn put(&self, table: Table, key: &Tuple, entry: &FlowEntry) -> bool {
        write(table, key, entry, ANY)
    }

    #[inline(always)]
    fn amend(&self, table: Table, key: &Tuple, change: &Change) -> Amended {
        let there = match table {
            Table::Established => maps::FLOWS.get_ptr_mut(key),
            Table::HalfOpen => maps::HALF_OPEN.get_ptr_mut(key),
        };
        let Some(there) = there else {
            return Amended::MISSING;
        };
        // SAFETY: the element stays allocated until this program ends, and each store is aligned. Another
        // CPU that changes it between the load of the state and its store, a moment, has a packet of the same
        // flow; if it deletes it, and the element is another flow's by now, that one's next packet corrects
        // the state. The agent's sweep corrects the count.
        unsafe {
            (&raw mut (*there).used_ns).write_volatile(change.used_ns);
            if change.proof != 0 {
                (&raw mut (*there).proof).write_volatile(change.proof);
            }
            let before = (&raw const (*there).state).read_volatile();
            let after = change.applied_to(table, before);
            (&raw mut (*there).state).write_volatile(after);
            Amended {
                was_there: true,
                before,
                after,
            }
        }
    }

    #[inline(always)]
    fn forget(&self, table: Table, key: &Tuple) -> bool {
        match table {
            Table::Established => maps::FLOWS.remove(key),
            Table::HalfOpen => maps::HALF_OPEN.remove(key),
        }
        .is_ok()
    }

    #[inline(always)]
    fn lock(&self, key: &Tuple) -> bool {
        maps::LOCKS.insert(key, &0, NOEXIST).is_ok()
    }

    #[inline(always)]
    fn unlock(&self, key: &Tuple) {
        let _ = maps::LOCKS.remove(key);
    }

    #[inline(always)]
    fn timeout_ns(&self, protocol: u8, state: u8) -> u64 {
        let index = timeout_index(protocol, state) & 255;
        // SAFETY: it is as long as that, and nobody writes it once the program is loaded. Volatile,
        // because the agent wrote it before, which the compiler can't know.
        let seconds = unsafe {
            (&raw const maps::FLOW_TIMEOUTS)
                .cast::<u32>()
                .add(index)
                .read_volatile()
        };
        u64::from(seconds) * SECOND_NS
    }

    #[inline(always)]
    fn fragment(&self, key: &FragmentKey) -> Option<FragmentPorts> {
        // SAFETY: see `find`.
        unsafe { maps::FRAGMENTS.get(key) }.copied()
    }

    #[inline(always)]
    fn put_fragment(&self, key: &FragmentKey, ports: &FragmentPorts) {
        // Without room the later fragments are orphans, and counted as such.
        let _ = maps::FRAGMENTS.insert(key, ports, ANY);
    }
}

#[inline(always)]
fn write(table: Table, key: &Tuple, entry: &FlowEntry, flags: u64) -> bool {
    match table {
        Table::Established => maps::FLOWS.insert(key, entry, flags),
        Table::HalfOpen => maps::HALF_OPEN.insert(key, entry, flags),
    }
    .is_ok()
}

impl Node for Skb {
    #[inline(always)]
    fn snat_ports(&self) -> PortRange {
        PortRange {
            first: maps::SNAT_FIRST_PORT.load(),
            last: maps::SNAT_LAST_PORT.load(),
        }
    }

    #[inline(always)]
    fn inherited_until_ns(&self) -> u64 {
        maps::INHERITED_UNTIL_NS.load()
    }

    #[inline(always)]
    fn ifindex(&self) -> u32 {
        // SAFETY: the kernel passes a valid context.
        // Volatile, or LLVM loads through a pointer that is either into it or into something else, which
        // the verifier forbids.
        unsafe { (&raw const (*self.0).ifindex).read_volatile() }
    }

    #[inline(always)]
    fn device(&self, ifindex: u32) -> Option<Device> {
        // SAFETY: an element that is replaced while it is copied is of the same device.
        unsafe { maps::DEVICES.get(ifindex) }.copied()
    }

    #[inline(always)]
    fn route(&self, flow: &Flow, dst: &SockAddr, into: &mut Route) -> Way {
        let mut lookup = MaybeUninit::<FibLookup>::zeroed();
        let parameters = lookup.as_mut_ptr();
        // SAFETY: all bits 0 are a value of it; the helper takes its size and fills it.
        unsafe {
            // As the kernel would route it: netfilter changes the source later than the destination.
            (*parameters).ifindex = self.ifindex();
            (*parameters).l4_protocol = flow.tuple.protocol;
            (*parameters).sport = flow.tuple.src_port_be;
            (*parameters).dport = dst.port_be;
            if dst.addr.is_v4() {
                (*parameters).family = AF_INET as u8;
                (*parameters).__bindgen_anon_2.tos = flow.class as u8;
                (*parameters).__bindgen_anon_3.ipv4_src = flow.outer_src.words[3];
                (*parameters).__bindgen_anon_4.ipv4_dst = dst.addr.words[3];
            } else {
                (*parameters).family = AF_INET6 as u8;
                (*parameters).__bindgen_anon_2.flowinfo = flow.class;
                (*parameters).__bindgen_anon_3.ipv6_src = flow.outer_src.words;
                (*parameters).__bindgen_anon_4.ipv6_dst = dst.addr.words;
            }
            let size = size_of::<FibLookup>() as i32;
            let flags = if maps::HAS_SKIP_NEIGH.load() != 0 {
                BPF_FIB_LOOKUP_SKIP_NEIGH
            } else {
                0
            };
            let Ok(result) = u32::try_from(bpf_fib_lookup(self.0.cast(), parameters, size, flags))
            else {
                return Way::Nowhere;
            };
            match result {
                // Whether the neighbour is known doesn't matter: the redirection asks for it. Nor does
                // the size, which is compared with the device's MTU elsewhere.
                BPF_FIB_LKUP_RET_SUCCESS
                | BPF_FIB_LKUP_RET_NO_NEIGH
                | BPF_FIB_LKUP_RET_FRAG_NEEDED => {}
                BPF_FIB_LKUP_RET_FWD_DISABLED => return Way::ForwardingOff,
                _ => return Way::Nowhere,
            }
            into.ifindex = (*parameters).ifindex;
            // A destination that is reached directly is its own gateway. One of IPv4 may have a gateway of
            // IPv6.
            into.gateway = if u32::from((*parameters).family) == AF_INET {
                Addr::from_v4_word((*parameters).__bindgen_anon_4.ipv4_dst)
            } else {
                Addr {
                    words: (*parameters).__bindgen_anon_4.ipv6_dst,
                }
            };
            Way::Forward
        }
    }

    #[inline(always)]
    fn is_for_device(&self) -> bool {
        // SAFETY: the kernel passes a valid context.
        unsafe { (&raw const (*self.0).pkt_type).read_volatile() == PACKET_HOST }
    }

    #[inline(always)]
    fn is_sent_on(&self) -> bool {
        // SAFETY: the kernel passes a valid context.
        let words = unsafe {
            [
                (&raw const (*self.0).cb[0]).read_volatile(),
                (&raw const (*self.0).cb[1]).read_volatile(),
            ]
        };
        if words[0] != SENT_ON[0] || words[1] != SENT_ON[1] {
            return false;
        }
        self.mark([0; 2]);
        true
    }

    #[inline(always)]
    fn has_socket(&self, tuple: &Tuple) -> bool {
        let mut wanted = MaybeUninit::<SockTuple>::zeroed();
        let parameters = wanted.as_mut_ptr();
        // SAFETY: all bits 0 are a value of it; the helpers take its size. What they return is released.
        unsafe {
            let size = if tuple.src.is_v4() {
                let v4 = &raw mut (*parameters).__bindgen_anon_1.ipv4;
                (*v4).saddr = tuple.src.words[3];
                (*v4).daddr = tuple.dst.words[3];
                (*v4).sport = tuple.src_port_be;
                (*v4).dport = tuple.dst_port_be;
                size_of_val(&(*parameters).__bindgen_anon_1.ipv4)
            } else {
                let v6 = &raw mut (*parameters).__bindgen_anon_1.ipv6;
                (*v6).saddr = tuple.src.words;
                (*v6).daddr = tuple.dst.words;
                (*v6).sport = tuple.src_port_be;
                (*v6).dport = tuple.dst_port_be;
                size_of_val(&(*parameters).__bindgen_anon_1.ipv6)
            };
            let context = self.0.cast();
            let socket = match Protocol::from_number(tuple.protocol) {
                Some(Protocol::Tcp) => {
                    bpf_skc_lookup_tcp(context, parameters, size as u32, CURRENT_NETNS, 0)
                }
                Some(Protocol::Udp) => {
                    bpf_sk_lookup_udp(context, parameters, size as u32, CURRENT_NETNS, 0)
                }
                // No helper finds its sockets.
                Some(Protocol::Sctp) | None => return false,
            };
            if socket.is_null() {
                return false;
            }
            bpf_sk_release(socket.cast());
            true
        }
    }

    #[inline(always)]
    fn is_allowed(&self, service: u32, source: &Addr) -> bool {
        let key = SourceRangeKey::of(service, *source);
        let key = Key::new(key.prefix_length, key.range);
        maps::SOURCE_RANGES.get(&key).is_some()
    }

    #[inline(always)]
    fn is_in_service_nets(&self, addr: &Addr) -> bool {
        let key = NetKey::of(*addr);
        let key = Key::new(key.prefix_length, key.addr);
        maps::SERVICE_NETS.get(&key).is_some()
    }
}
