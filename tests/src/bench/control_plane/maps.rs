//! What the maps hold, read from their pins.

use std::{
    collections::BTreeSet,
    net::{IpAddr, SocketAddr},
    path::Path,
};

use anyhow::{Context as _, Result, ensure};
use aya::maps::{Array, HashMap, Map, MapData};
use proxy_common::abi::{
    Backend, Frontend, FrontendKey, Protocol, Service, ServiceWord, SockAddr, map,
};
use proxy_user::maps::pin_directory_name;

pub(super) struct Maps {
    frontends: HashMap<MapData, [u8; FrontendKey::SIZE], [u8; Frontend::SIZE]>,
    services: Array<MapData, [u8; Service::SIZE]>,
    slots: Array<MapData, u32>,
    backends: Array<MapData, [u8; Backend::SIZE]>,
}

impl Maps {
    pub(super) fn open(bpffs: &Path) -> Result<Self> {
        let open = |name: &str| {
            let path = bpffs.join(pin_directory_name()).join(name);
            MapData::from_pin(&path).with_context(|| format!("open {}", path.display()))
        };
        Ok(Self {
            frontends: Map::HashMap(open(map::FRONTENDS)?).try_into()?,
            services: Map::Array(open(map::SERVICES)?).try_into()?,
            slots: Map::Array(open(map::SLOTS)?).try_into()?,
            backends: Map::Array(open(map::BACKENDS)?).try_into()?,
        })
    }

    pub(super) fn has(&self, key: &FrontendKey) -> bool {
        self.frontends.get(&key.to_bytes(), 0).is_ok()
    }

    /// The service id behind a frontend.
    pub(super) fn service_of(&self, key: &FrontendKey) -> Option<u32> {
        let bytes = self.frontends.get(&key.to_bytes(), 0).ok()?;
        Some(Frontend::from_bytes(bytes).service)
    }

    pub(super) fn word(&self, service: u32) -> Result<ServiceWord> {
        Ok(Service::from_bytes(self.services.get(&service, 0)?).word)
    }

    pub(super) fn backends_behind(&self, word: ServiceWord) -> Result<BTreeSet<SocketAddr>> {
        (0..word.count())
            .map(|at| {
                let id = self.slots.get(&(word.first_slot() + at), 0)?;
                let backend = Backend::from_bytes(self.backends.get(&id, 0)?);
                Ok(SockAddr::from_parts(backend.addr, backend.port_be).socket_addr())
            })
            .collect()
    }

    /// Fails unless the frontend leads to exactly these.
    pub(super) fn check(&self, key: &FrontendKey, wanted: &BTreeSet<SocketAddr>) -> Result<()> {
        let service = self.service_of(key).context("no frontend")?;
        let found = self.backends_behind(self.word(service)?)?;
        ensure!(
            found == *wanted,
            "the maps lead to {found:?}, not to {wanted:?}"
        );
        Ok(())
    }
}

pub(super) fn key_of(at: SocketAddr) -> FrontendKey {
    FrontendKey {
        addr: at.ip().into(),
        port_be: at.port().to_be(),
        protocol: Protocol::Tcp.number(),
        zero: 0,
    }
}

pub(super) fn key_of_address(ip: IpAddr) -> FrontendKey {
    FrontendKey::of_address(ip.into())
}
