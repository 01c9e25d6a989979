//! A Maglev table as the paper has it (section 3.4, "Pseudocode 1"), step by step and with nothing saved:
//! whole permutations, and a list of who still wants what.

use std::net::{IpAddr, SocketAddr};

/// Indexes of backends, `size` of them. `weights`: turns of each in a round.
pub(in crate::plan) fn table(
    backends: &[SocketAddr],
    weights: &[u32],
    size: u64,
) -> Vec<Option<usize>> {
    let permutations: Vec<Vec<u64>> = backends
        .iter()
        .map(|backend| {
            let offset = number(backend, 1) % size;
            let skip = number(backend, 2) % (size - 1) + 1;
            (0..size).map(|j| (offset + j * skip) % size).collect()
        })
        .collect();
    let turns = round(weights);
    let mut next = vec![0; backends.len()];
    let mut entry: Vec<Option<usize>> = vec![None; usize::try_from(size).unwrap()];
    let mut filled = 0;
    while filled < entry.len() {
        for &i in &turns {
            if filled == entry.len() {
                break;
            }
            let free = permutations[i][next[i]..]
                .iter()
                .position(|c| entry[usize::try_from(*c).unwrap()].is_none())
                .unwrap();
            next[i] += free;
            entry[usize::try_from(permutations[i][next[i]]).unwrap()] = Some(i);
            next[i] += 1;
            filled += 1;
        }
    }
    entry
}

/// By smooth weighted round-robin.
fn round(weights: &[u32]) -> Vec<usize> {
    let total: u32 = weights.iter().sum();
    let mut taken = vec![0_i64; weights.len()];
    (1..=i64::from(total))
        .map(|step| {
            // Whose due is most ahead of what it has had.
            let lead = |i: &usize| step * i64::from(weights[*i]) - taken[*i] * i64::from(total);
            let turn = (0..weights.len())
                .max_by_key(|i| (lead(i), std::cmp::Reverse(*i)))
                .unwrap();
            taken[turn] += 1;
            turn
        })
        .collect()
}

/// The `nth` number of SplitMix64 from the FNV-1a hash of address and port.
fn number(backend: &SocketAddr, nth: u32) -> u64 {
    let mut bytes = match backend.ip() {
        IpAddr::V4(ip) => ip.octets().to_vec(),
        IpAddr::V6(ip) => ip.octets().to_vec(),
    };
    bytes.extend(backend.port().to_be_bytes());
    let mut state: u64 = 14_695_981_039_346_656_037;
    for byte in bytes {
        state ^= u64::from(byte);
        state = state.wrapping_mul(1_099_511_628_211);
    }
    for _ in 0..nth {
        state = state.wrapping_add(0x9e37_79b9_7f4a_7c15);
    }
    state = (state ^ (state >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    state = (state ^ (state >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    state ^ (state >> 31)
}
