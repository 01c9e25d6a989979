//! What the maps hold of each port, found by its Service: a Service has few ports, and there are many
//! Services, whose names share their beginnings.

use std::sync::Arc;

use super::planner::Port;
use crate::{
    hash::HashMap,
    model::{ObjectName, PortKey},
};

#[derive(Debug, Default)]
pub(super) struct Ports(HashMap<ObjectName, Vec<(Arc<PortKey>, Port)>>);

/// Within a Service: the names of Service and port are most often the very same in memory.
fn find(ports: &[(Arc<PortKey>, Port)], key: &PortKey) -> Option<usize> {
    ports
        .iter()
        .position(|(known, _)| std::ptr::eq(&**known, key) || **known == *key)
}

impl Ports {
    pub(super) fn get_key_value(&self, key: &PortKey) -> Option<(&Arc<PortKey>, &Port)> {
        let ports = self.0.get(&key.service)?;
        let (key, port) = &ports[find(ports, key)?];
        Some((key, port))
    }

    pub(super) fn get(&self, key: &PortKey) -> Option<&Port> {
        Some(self.get_key_value(key)?.1)
    }

    pub(super) fn get_mut(&mut self, key: &PortKey) -> Option<&mut Port> {
        let ports = self.0.get_mut(&key.service)?;
        let at = find(ports, key)?;
        Some(&mut ports[at].1)
    }

    pub(super) fn contains_key(&self, key: &PortKey) -> bool {
        self.get(key).is_some()
    }

    pub(super) fn insert(&mut self, key: Arc<PortKey>, port: Port) {
        let ports = self.0.entry(key.service.clone()).or_default();
        match find(ports, &key) {
            Some(at) => ports[at].1 = port,
            None => {
                if ports.is_empty() {
                    ports.reserve_exact(1);
                }
                ports.push((key, port));
            }
        }
    }

    pub(super) fn remove(&mut self, key: &PortKey) -> Option<Port> {
        let ports = self.0.get_mut(&key.service)?;
        let (_, port) = ports.remove(find(ports, key)?);
        if ports.is_empty() {
            self.0.remove(&key.service);
        }
        Some(port)
    }

    pub(super) fn of(&self, service: &ObjectName) -> impl Iterator<Item = (&Arc<PortKey>, &Port)> {
        let ports = self.0.get(service).into_iter().flatten();
        ports.map(|(key, port)| (key, port))
    }

    /// In no order.
    pub(super) fn iter(&self) -> impl Iterator<Item = (&Arc<PortKey>, &Port)> {
        self.0.values().flatten().map(|(key, port)| (key, port))
    }
}
