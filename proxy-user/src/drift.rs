//! Pure: whether the programs' count of a backend's connections has drifted from the entries that there
//! are, and by how much.
//!
//! Programs add to `active` and subtract from it; a sweep counts the entries. Entries come and go while it
//! does, so the two may differ and both be right. What can have come is known: each entry that comes is a
//! connection that the backend was given. So a sweep says between which bounds the drift is, and zero is
//! among them whenever what was seen can be explained without any. Once nothing happens, the bounds meet.
//! What is certain in three sweeps in a row is corrected by the least of them: a flow that was given its
//! backend before a sweep and was proven in it makes a bound wrong for once.

use crate::hash::HashMap;

/// So many sweeps in a row.
const CERTAIN: u32 = 3;

/// How a backend stands, by the programs' count.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct Stand {
    /// `BackendStats::active`.
    pub(crate) active: i64,
    /// `BackendStats::connections`: it only rises, until the id goes to another endpoint.
    pub(crate) connections: u64,
}

/// What was seen of a backend in one sweep.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Seen {
    pub(crate) before: Stand,
    pub(crate) after: Stand,
    /// Entries that name it, each of them if it was there all the time, and once at most.
    pub(crate) counted: i64,
}

impl Seen {
    /// `active` is too large by this much at least (below 0: too small); 0 if it may be right.
    fn certain(&self) -> i64 {
        let Self {
            before,
            after,
            counted,
        } = *self;
        let came = after.connections.checked_sub(before.connections);
        let Some(came) = came.and_then(|came| i64::try_from(came).ok()) else {
            // It was begun anew: nothing is known of what came before.
            return 0;
        };
        let least = after.active.saturating_sub(came).saturating_sub(counted);
        let most = before.active.saturating_add(came).saturating_sub(counted);
        match (least, most) {
            (1.., _) => least,
            (_, ..=-1) => most,
            _ => 0,
        }
    }
}

#[derive(Clone, Copy, Debug)]
struct Suspicion {
    /// The least of them; never 0.
    least: i64,
    sweeps: u32,
}

/// What is suspected, from sweep to sweep, by backend id.
#[derive(Debug, Default)]
pub(crate) struct Drift {
    suspected: HashMap<u32, Suspicion>,
}

impl Drift {
    /// A sweep has ended. What is to be added to `active`, by backend id in order.
    pub(crate) fn judge(&mut self, sweep: impl Iterator<Item = (u32, Seen)>) -> Vec<(u32, i64)> {
        let before = std::mem::take(&mut self.suspected);
        let mut corrections = Vec::new();
        for (id, seen) in sweep {
            let certain = seen.certain();
            if certain == 0 {
                continue;
            }
            let now = match before.get(&id) {
                Some(before) if before.least.signum() == certain.signum() => Suspicion {
                    least: if before.least.abs() < certain.abs() {
                        before.least
                    } else {
                        certain
                    },
                    sweeps: before.sweeps + 1,
                },
                _ => Suspicion {
                    least: certain,
                    sweeps: 1,
                },
            };
            if now.sweeps < CERTAIN {
                self.suspected.insert(id, now);
            } else {
                corrections.push((id, now.least.saturating_neg()));
            }
        }
        corrections.sort_unstable();
        corrections
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    /// A backend's entries in a map of buckets, and the programs' count, which may have drifted.
    #[derive(Clone, Debug)]
    struct Kernel {
        buckets: [i64; 8],
        stand: Stand,
    }

    impl Kernel {
        fn new(entries: i64, drift: i64) -> Self {
            let mut buckets = [entries / 8; 8];
            buckets[0] += entries % 8;
            let stand = Stand {
                active: entries + drift,
                connections: 100,
            };
            Self { buckets, stand }
        }

        fn entries(&self) -> i64 {
            self.buckets.iter().sum()
        }

        fn drift(&self) -> i64 {
            self.stand.active - self.entries()
        }

        /// A connection comes (`true`) or one goes.
        fn change(&mut self, comes: bool, bucket: usize) {
            let bucket = &mut self.buckets[bucket % 8];
            if comes {
                *bucket += 1;
                self.stand.active += 1;
                self.stand.connections += 1;
            } else if *bucket > 0 {
                *bucket -= 1;
                self.stand.active -= 1;
            }
        }

        /// Changes happen before the bucket of their number is read, or after the last.
        fn sweep(&mut self, drift: &mut Drift, changes: &[(usize, bool, usize)]) -> i64 {
            let before = self.stand;
            let mut counted = 0;
            for at in 0..=8 {
                for (_, comes, bucket) in changes.iter().filter(|change| change.0 == at) {
                    self.change(*comes, *bucket);
                }
                counted += self.buckets.get(at).copied().unwrap_or(0);
            }
            let seen = Seen {
                before,
                after: self.stand,
                counted,
            };
            let corrections = drift.judge([(7, seen)].into_iter());
            let by = corrections.first().map_or(0, |correction| correction.1);
            self.stand.active += by;
            by
        }
    }

    #[test]
    fn what_has_drifted_is_right_after_three_quiet_sweeps_and_stays_so() {
        for injected in [-3, 1, 400] {
            let mut kernel = Kernel::new(20, injected);
            let mut drift = Drift::default();
            let corrections: Vec<i64> = (0..6).map(|_| kernel.sweep(&mut drift, &[])).collect();
            assert_eq!(corrections, [0, 0, -injected, 0, 0, 0]);
        }
    }

    #[test]
    fn a_count_below_zero_without_any_entry_becomes_zero() {
        let mut kernel = Kernel::new(0, -2);
        let mut drift = Drift::default();
        for _ in 0..3 {
            kernel.sweep(&mut drift, &[]);
        }
        assert_eq!(kernel.stand.active, 0);
    }

    #[test]
    fn much_drift_is_corrected_under_load_as_far_as_it_is_certain() {
        let mut kernel = Kernel::new(50, 500);
        let mut drift = Drift::default();
        let busy: Vec<(usize, bool, usize)> = (0..40).map(|i| (i % 9, i % 2 == 0, i)).collect();
        for _ in 0..3 {
            kernel.sweep(&mut drift, &busy);
        }
        assert!((0..=40).contains(&kernel.drift()), "{}", kernel.drift());
    }

    #[test]
    fn a_sweep_that_differs_from_the_others_breaks_the_row() {
        let seen = |active| Seen {
            before: Stand {
                active,
                connections: 9,
            },
            after: Stand {
                active,
                connections: 9,
            },
            counted: 5,
        };
        let mut drift = Drift::default();
        for active in [7, 7, 5, 8, 6, 4, 4] {
            assert_eq!(drift.judge([(1, seen(active))].into_iter()), []);
        }
        // The least of the three, and each id by itself.
        let both = [(2, seen(9)), (1, seen(2))];
        assert_eq!(drift.judge(both.into_iter()), [(1, 1)]);
    }

    #[test]
    fn an_id_that_began_anew_meanwhile_is_not_judged() {
        let seen = Seen {
            before: Stand {
                active: 5,
                connections: 9,
            },
            after: Stand {
                active: 5,
                connections: 0,
            },
            counted: 0,
        };
        assert_eq!(seen.certain(), 0);
    }

    proptest! {
        /// Whatever comes and goes during sweeps: a count that is right stays so; one that isn't is never
        /// made worse and never corrected beyond the truth; and five sweeps after all is quiet it is right: two
        /// may end what was suspected before, of which less was certain.
        #[test]
        fn a_right_count_is_never_touched_and_a_wrong_one_only_comes_nearer(
            entries in 0_i64..60,
            injected in prop_oneof![Just(0_i64), -20_i64..20],
            sweeps in prop::collection::vec(
                prop::collection::vec((0_usize..9, any::<bool>(), 0_usize..8), 0..30), 0..12),
        ) {
            let mut kernel = Kernel::new(entries, injected);
            let mut drift = Drift::default();
            let mut before = injected;
            for changes in sweeps.iter().map(Vec::as_slice).chain([&[][..]; 5]) {
                let by = kernel.sweep(&mut drift, changes);
                let after = kernel.drift();
                prop_assert_eq!(after, before + by);
                prop_assert!(after.abs() <= before.abs() && after * before >= 0, "{before} {after}");
                before = after;
            }
            prop_assert_eq!(before, 0);
        }
    }
}
