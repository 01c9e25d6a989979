//! Names that many objects share, each kept once: of namespaces, nodes, zones and ports.

use std::sync::Arc;

use super::{EndpointSlice, Service};
use crate::hash::HashSet;

/// Fewer are not worth a look for those that are not used any more.
const FEW: usize = 1024;

#[derive(Debug, Default)]
pub(super) struct Names {
    known: HashSet<Arc<str>>,
    /// How many were in use when it was last looked.
    in_use: usize,
}

impl Names {
    fn share(&mut self, name: &mut Arc<str>) {
        if let Some(known) = self.known.get(name) {
            *name = Arc::clone(known);
            return;
        }
        if self.known.len() > FEW.max(2 * self.in_use) {
            self.known.retain(|known| Arc::strong_count(known) > 1);
            self.in_use = self.known.len();
        }
        self.known.insert(Arc::clone(name));
    }

    pub(super) fn share_service(&mut self, service: &mut Service) {
        self.share(&mut service.name.namespace);
        for port in &mut service.ports {
            self.share(&mut port.name);
        }
    }

    pub(super) fn share_slice(&mut self, slice: &mut EndpointSlice) {
        self.share(&mut slice.name.namespace);
        self.share(&mut slice.service.namespace);
        for port in &mut slice.ports {
            self.share(&mut port.name);
        }
        for endpoint in &mut slice.endpoints {
            let hints = endpoint
                .zone_hints
                .iter_mut()
                .chain(endpoint.node_hints.iter_mut());
            for name in endpoint.node.iter_mut().chain(hints) {
                self.share(name);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn equal_names_become_one_and_those_of_nobody_are_forgotten() {
        let mut names = Names::default();
        let (mut first, mut second): (Arc<str>, Arc<str>) = ("a".into(), "a".into());
        names.share(&mut first);
        names.share(&mut second);
        assert!(Arc::ptr_eq(&first, &second));
        for number in 0..10 * FEW {
            names.share(&mut number.to_string().into());
        }
        assert!(names.known.len() <= FEW + 2, "{}", names.known.len());
        assert!(names.known.contains("a"));
    }
}
