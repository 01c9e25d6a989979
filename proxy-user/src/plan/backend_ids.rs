//! Whose a backend's id is, and was: an endpoint that comes back before its id is free gets that very
//! id, by which the connections that it still has are counted.

use std::{net::SocketAddr, sync::Arc};

use proxy_common::abi::map;

use super::ids::{Epoch, Full, IdPool, WaitsFor};
use crate::{hash::HashMap, model::PortKey};

#[derive(Debug)]
pub(super) struct BackendIds {
    pool: IdPool,
    /// Of those that wait, as far as this agent took them back.
    former: HashMap<(Arc<PortKey>, SocketAddr), u32>,
}

impl BackendIds {
    pub(super) fn new(capacity: u32) -> Self {
        Self {
            pool: IdPool::new(map::BACKENDS, capacity),
            former: HashMap::default(),
        }
    }

    pub(super) fn used(&self) -> u64 {
        self.pool.used()
    }

    /// Whether all these endpoints of the port can have ids.
    pub(super) fn has_room(
        &self,
        key: &Arc<PortKey>,
        addresses: &[SocketAddr],
    ) -> Result<(), Full> {
        let is_new = |address: &&SocketAddr| {
            let endpoint = (Arc::clone(key), **address);
            !self.former.contains_key(&endpoint)
        };
        let needed = addresses.iter().filter(is_new).count() as u64;
        if self.pool.room() < needed {
            return Err(self.pool.full(needed));
        }
        Ok(())
    }

    /// The id for an endpoint that has none; if it is the one it had, with what that was waiting for.
    pub(super) fn take(
        &mut self,
        key: &Arc<PortKey>,
        address: &SocketAddr,
    ) -> Result<(u32, Option<WaitsFor>), Full> {
        let former = self.former.remove(&(Arc::clone(key), *address));
        if let Some(id) = former
            && let Some(waited) = self.pool.take_again(id)
        {
            return Ok((id, Some(waited)));
        }
        Ok((self.pool.take()?, None))
    }

    /// The endpoint has not come to have the id. `waited`: as [`Self::take`] told it.
    pub(super) fn give_back(
        &mut self,
        key: &Arc<PortKey>,
        address: SocketAddr,
        id: u32,
        waited: Option<WaitsFor>,
    ) {
        let Some(waited) = waited else {
            return self.pool.give_back(id);
        };
        self.pool.wait_again(id, waited);
        self.former.insert((Arc::clone(key), address), id);
    }

    /// `former`: the endpoint that had it, if it is known.
    pub(super) fn retire(
        &mut self,
        epoch: Epoch,
        id: u32,
        former: Option<(Arc<PortKey>, SocketAddr)>,
    ) {
        self.pool.retire(epoch, id);
        self.former.extend(former.map(|endpoint| (endpoint, id)));
    }

    pub(super) fn adopt(&mut self, id: u32) -> bool {
        self.pool.adopt(id)
    }

    pub(super) fn keep_busy(&mut self, id: u32) {
        self.pool.keep_busy(id);
    }

    pub(super) fn passed(&mut self, epoch: Epoch, is_busy: impl Fn(u32) -> bool) {
        self.pool.passed(epoch, is_busy);
        self.forget();
    }

    pub(super) fn look_again(&mut self, is_busy: impl Fn(u32) -> bool) {
        self.pool.look_again(is_busy);
        self.forget();
    }

    /// What is free is nobody's.
    fn forget(&mut self) {
        let pool = &self.pool;
        self.former.retain(|_, id| pool.is_waiting(*id));
        self.former.shrink_to(2 * self.former.len());
    }

    #[cfg(test)]
    pub(super) fn remembered(&self) -> usize {
        self.former.len()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{
        model::ObjectName,
        plan::{ids::never_busy, planner::nobody},
    };

    fn key(service: &str) -> Arc<PortKey> {
        Arc::new(PortKey {
            service: ObjectName::new("default", service),
            ..nobody()
        })
    }

    fn address(last: u8) -> SocketAddr {
        ([10, 0, 0, last], 80).into()
    }

    /// Two ids, of which `web` had the first, for 10.0.0.1; it waits since epoch 1.
    fn left() -> BackendIds {
        let mut ids = BackendIds::new(2);
        let web = key("web");
        assert_eq!(ids.take(&web, &address(1)), Ok((1, None)));
        ids.retire(1, 1, Some((web, address(1))));
        ids
    }

    #[test]
    fn only_the_same_endpoint_of_the_same_port_gets_an_id_that_waits() {
        let mut ids = left();
        assert_eq!(ids.take(&key("other"), &address(1)), Ok((2, None)));
        assert!(ids.take(&key("web"), &address(2)).is_err());
        let web = key("web");
        assert!(ids.has_room(&web, &[address(1)]).is_ok());
        assert!(ids.has_room(&web, &[address(1), address(2)]).is_err());
        let again = ids.take(&web, &address(1));
        assert_eq!(again, Ok((1, Some(WaitsFor::Epoch(1)))));
        assert!(ids.take(&web, &address(1)).is_err());
        // It waits for nothing any more.
        ids.passed(1, never_busy);
        assert_eq!(ids.used(), 2);
    }

    #[test]
    fn an_id_that_was_taken_again_for_nothing_waits_for_what_it_waited_for() {
        let mut ids = left();
        let web = key("web");
        let again = |ids: &mut BackendIds, waited| {
            assert_eq!(ids.take(&web, &address(1)), Ok((1, Some(waited))));
            ids.give_back(&web, address(1), 1, Some(waited));
        };
        again(&mut ids, WaitsFor::Epoch(1));
        ids.passed(0, never_busy);
        again(&mut ids, WaitsFor::Epoch(1));
        ids.passed(1, |_| true);
        again(&mut ids, WaitsFor::Connections);
        assert_eq!((ids.used(), ids.remembered()), (1, 1));
        ids.look_again(never_busy);
        assert_eq!((ids.used(), ids.remembered()), (0, 0));
        assert_eq!(ids.take(&key("other"), &address(2)), Ok((1, None)));
    }
}
