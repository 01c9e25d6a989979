//! What a scheduler draws from: which backend each slot of a run names.

use std::{net::SocketAddr, num::NonZeroU16};

use proxy_common::abi::Scheduler;

use super::{
    ids::{Full, Run, RunPool},
    maglev,
};
use crate::model::PortSnapshot;

/// Of backends with different weights; those of one slot each take what they need.
const MOST_SLOTS: usize = 4096;

/// By what the backends of a port are drawn.
pub(super) struct Draw<'a> {
    scheduler: Scheduler,
    chosen: &'a [SocketAddr],
    /// Slots of each in a round; 1 for all if their weights are the same.
    turns: Vec<u32>,
}

/// What the slots of a run are.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Shape {
    /// A Maglev table of this size.
    Table(u32),
    /// As many for each backend as its weight says.
    Weighted(usize),
    /// One for each backend.
    Plain,
}

/// What a port's slots are to be, and where.
pub(super) struct Slots {
    /// `None`: there are none, or they are those it has, where they are.
    pub(super) run: Option<Run>,
    pub(super) backend_ids: Vec<u32>,
    pub(super) shortage: Option<Shortage>,
}

/// A run is smaller than its scheduler or weights ask for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Shortage {
    pub(super) slots: u32,
    pub(super) wanted: u32,
}

impl<'a> Draw<'a> {
    pub(super) fn of(snapshot: &'a PortSnapshot) -> Self {
        let weights = snapshot.chosen.iter();
        let weights: Vec<u16> = weights.map(|chosen| weight_of(snapshot, chosen)).collect();
        Self {
            scheduler: snapshot.balancing.scheduler,
            chosen: &snapshot.chosen,
            turns: turns(&weights, MOST_SLOTS),
        }
    }

    /// From the best to what every port can have: with the latter, a rule that goes by a table goes by
    /// the list itself.
    fn shapes(&self) -> Vec<Shape> {
        let round: usize = self.turns.iter().map(|turns| *turns as usize).sum();
        let mut shapes = Vec::new();
        if self.scheduler == Scheduler::Maglev {
            shapes.extend(maglev::sizes(round).map(Shape::Table));
        } else if round > self.chosen.len() {
            shapes.push(Shape::Weighted(round));
        }
        shapes.push(Shape::Plain);
        shapes
    }

    fn count(&self, shape: Shape) -> usize {
        match shape {
            Shape::Table(size) => size as usize,
            Shape::Weighted(round) => round,
            Shape::Plain => self.chosen.len(),
        }
    }

    /// Indexes of the chosen.
    fn slots(&self, shape: Shape) -> Vec<u32> {
        match shape {
            Shape::Table(size) => maglev::table(self.chosen, &interleaved(&self.turns), size),
            Shape::Weighted(_) => interleaved(&self.turns),
            Shape::Plain => (0..).zip(self.chosen).map(|(index, _)| index).collect(),
        }
    }

    /// The best there is room for: what takes more than a slot for each backend gets it only while half
    /// of all slots stay free, so that no port is refused for another's. `ids`: of the chosen, in their
    /// order. `held`: the slots it has.
    pub(super) fn take(
        &self,
        runs: &mut RunPool,
        ids: &[u32],
        held: Option<&[u32]>,
    ) -> Result<Slots, Full> {
        if self.chosen.is_empty() {
            return Ok(Slots {
                run: None,
                backend_ids: Vec::new(),
                shortage: None,
            });
        }
        let shapes = self.shapes();
        let wanted = shapes.first().map_or(0, |shape| self.count(*shape));
        for shape in shapes {
            let count = self.count(shape);
            let order = Run::order_for(count);
            let has_room = shape == Shape::Plain || runs.has_room_to_spare(order);
            let held = held.filter(|held| held.len() == count);
            if !has_room && held.is_none() {
                continue;
            }
            let slots = self.slots(shape).into_iter();
            let backend_ids: Vec<u32> = slots.map(|index| ids[index as usize]).collect();
            let run = if held.is_some_and(|held| held == backend_ids) {
                None
            } else if shape == Shape::Plain {
                Some(runs.take(order)?)
            } else if has_room && let Ok(run) = runs.take(order) {
                Some(run)
            } else {
                continue;
            };
            let as_u32 = |count| u32::try_from(count).unwrap_or(u32::MAX);
            return Ok(Slots {
                run,
                backend_ids,
                shortage: (count < wanted).then(|| Shortage {
                    slots: as_u32(count),
                    wanted: as_u32(wanted),
                }),
            });
        }
        unreachable!("the plain run is taken, or there is no room for it")
    }
}

/// The weight of one of the chosen.
pub(super) fn weight_of(snapshot: &PortSnapshot, address: &SocketAddr) -> u16 {
    let weight = snapshot.balancing.weights.get(address);
    weight.map_or(1, |weight: &NonZeroU16| weight.get())
}

/// The chosen have not all the same weight.
pub(super) fn is_weighted(snapshot: &PortSnapshot) -> bool {
    let weights = snapshot.chosen.iter();
    let mut weights = weights.map(|address| weight_of(snapshot, address));
    let first = weights.next();
    weights.any(|weight| Some(weight) != first)
}

/// Weights, none of them 0, without their common divisor. If they sum up to more than `most` (or the
/// power of two that holds one for each), in proportion, by the largest remainder; nobody is below 1.
fn turns(weights: &[u16], most: usize) -> Vec<u32> {
    let divisor = weights.iter().copied().fold(0, gcd).max(1);
    let turns: Vec<u32> = weights.iter().map(|w| u32::from(w / divisor)).collect();
    let most = most.max(weights.len().next_power_of_two()) as u64;
    if turns.iter().map(|turns| u64::from(*turns)).sum::<u64>() <= most {
        return turns;
    }
    // From the lightest on: whoever would get less than one gets one, and the others share the rest.
    let mut by_weight: Vec<usize> = (0..turns.len()).collect();
    by_weight.sort_by_key(|index| turns[*index]);
    let (mut left, mut sum) = (
        most,
        turns.iter().map(|turns| u64::from(*turns)).sum::<u64>(),
    );
    let mut scaled = vec![1_u32; turns.len()];
    let lifted = by_weight.iter().take_while(|index| {
        let weight = u64::from(turns[**index]);
        let is_below = weight * left < sum;
        if is_below {
            left -= 1;
            sum -= weight;
        }
        is_below
    });
    let lifted = lifted.count();
    let share = |index: usize| u64::from(turns[index]) * left;
    let mut rest = left;
    for index in &by_weight[lifted..] {
        let whole = share(*index) / sum;
        rest -= whole;
        scaled[*index] = u32::try_from(whole).expect("no more than there are");
    }
    let mut by_remainder = by_weight.split_off(lifted);
    // Of the same remainder, the first.
    by_remainder.sort_by_key(|index| (std::cmp::Reverse(share(*index) % sum), *index));
    for index in by_remainder
        .into_iter()
        .take(usize::try_from(rest).unwrap_or(0))
    {
        scaled[index] += 1;
    }
    scaled
}

fn gcd(a: u16, b: u16) -> u16 {
    if b == 0 { a } else { gcd(b, a % b) }
}

/// Whose turn it is in one round, as indexes, by smooth weighted round-robin, as nginx has it: each
/// gains its turns at each step, and the one that has most (of several, the first) pays for all.
pub(super) fn interleaved(turns: &[u32]) -> Vec<u32> {
    if turns.iter().all(|turns| *turns == 1) {
        return (0..).zip(turns).map(|(index, _)| index).collect();
    }
    let round: i64 = turns.iter().map(|turns| i64::from(*turns)).sum();
    let mut gained = vec![0_i64; turns.len()];
    (0..round)
        .map(|_| {
            let mut first = 0;
            for (index, turns) in turns.iter().enumerate() {
                gained[index] += i64::from(*turns);
                if gained[index] > gained[first] {
                    first = index;
                }
            }
            gained[first] -= round;
            u32::try_from(first).expect("backends have 32-bit ids")
        })
        .collect()
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn count(slots: &[u32], index: usize) -> u32 {
        let count = slots.iter().filter(|slot| **slot as usize == index).count();
        u32::try_from(count).unwrap()
    }

    #[test]
    fn weights_are_as_many_slots_without_their_divisor() {
        assert_eq!(turns(&[2, 4, 6], 64), [1, 2, 3]);
        assert_eq!(turns(&[7, 7], 64), [1, 1]);
        assert_eq!(turns(&[], 64), [0; 0]);
    }

    #[test]
    fn too_many_slots_are_scaled_down_and_nobody_is_left_out() {
        assert_eq!(turns(&[1000, 999, 1], 8), [4, 3, 1]);
        assert_eq!(turns(&[1000, 1, 1, 1], 4), [1, 1, 1, 1]);
        assert_eq!(turns(&[3, 3, 2], 4), [2, 1, 1]);
    }

    /// From the description of nginx's change that brought it in.
    #[test]
    fn turns_are_interleaved_as_nginx_does_it() {
        assert_eq!(interleaved(&[5, 1, 1]), [0, 0, 1, 0, 2, 0, 0]);
        assert_eq!(interleaved(&[1, 1, 1]), [0, 1, 2]);
    }

    proptest! {
        #[test]
        fn shares_are_within_one_slot_of_the_weights(
            weights in prop::collection::vec(prop_oneof![1u16..8, 1u16..=1000], 1..200),
            most in 64usize..1024,
        ) {
            let turns = turns(&weights, most);
            let most = most.max(weights.len().next_power_of_two());
            let sum: u32 = turns.iter().sum();
            prop_assert!(turns.iter().all(|turns| *turns >= 1) && sum as usize <= most);
            // Those that are lifted to 1 aside, by exact fractions.
            let shared: Vec<(f64, f64)> = weights
                .iter()
                .zip(&turns)
                .filter(|(_, turns)| **turns > 1)
                .map(|(weight, turns)| (f64::from(*weight), f64::from(*turns)))
                .collect();
            for (weight, turns) in &shared {
                for (other, others_turns) in &shared {
                    // Each is off by less than one.
                    let ratio = weight / other;
                    prop_assert!(turns - 1.0 <= (others_turns + 1.0) * ratio + 1e-9, "{turns} {others_turns} {ratio}");
                }
            }
            let mut order: Vec<usize> = (0..weights.len()).collect();
            order.sort_by_key(|index| weights[*index]);
            for pair in order.windows(2) {
                if weights[pair[0]] < weights[pair[1]] {
                    prop_assert!(turns[pair[0]] <= turns[pair[1]]);
                }
            }
        }

        #[test]
        fn every_backend_has_its_turns_spread_over_the_round(
            turns in prop::collection::vec(1u32..20, 1..12),
        ) {
            let slots = interleaved(&turns);
            let round: u32 = turns.iter().sum();
            for (index, turns) in turns.iter().enumerate() {
                prop_assert_eq!(count(&slots, index), *turns);
                // At no point is it more than a few ahead of its share or behind it.
                for (at, _) in slots.iter().enumerate() {
                    let had = f64::from(count(&slots[..=at], index));
                    let due = f64::from(*turns) * (at as f64 + 1.0) / f64::from(round);
                    prop_assert!((had - due).abs() < 2.0, "{index} of {turns:?} at {at}: {had}, not {due}");
                }
            }
        }
    }
}
