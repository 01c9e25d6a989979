//! Who owns a frontend address, when several Services want it.

use std::sync::Arc;

use proxy_common::abi::FrontendKind;

use super::{FrontendAddress, ObjectName};
use crate::hash::HashMap;

/// A Service port's wish for an address. Ordered: the first of several has the address, so the older
/// Service keeps what it has, whatever order the objects arrive in.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(super) struct Claim {
    pub(super) created_secs: i64,
    pub(super) service: ObjectName,
    pub(super) port: Arc<str>,
    pub(super) kind: FrontendKind,
}

#[derive(Debug, Default)]
pub(super) struct Claims {
    by_address: HashMap<FrontendAddress, Vec<Claim>>,
}

impl Claims {
    /// The owner before, if another Service lost the address by this.
    pub(super) fn add(&mut self, address: FrontendAddress, claim: Claim) -> Option<Claim> {
        let claims = self.by_address.entry(address).or_default();
        let previous = claims.first().cloned();
        let at = claims.binary_search(&claim).unwrap_or_else(|at| at);
        // Nearly every address has one.
        if claims.is_empty() {
            claims.reserve_exact(1);
        }
        claims.insert(at, claim);
        previous.filter(|previous| at == 0 && previous.service != claims[0].service)
    }

    /// The new owner, if another Service got the address by this.
    pub(super) fn remove(&mut self, address: &FrontendAddress, claim: &Claim) -> Option<Claim> {
        let claims = self.by_address.get_mut(address)?;
        let at = claims.binary_search(claim).ok()?;
        claims.remove(at);
        match claims.first() {
            None => {
                self.by_address.remove(address);
                None
            }
            Some(next) if at == 0 && next.service != claim.service => Some(next.clone()),
            Some(_) => None,
        }
    }

    pub(super) fn owner(&self, address: &FrontendAddress) -> Option<&Claim> {
        self.by_address.get(address)?.first()
    }
}
