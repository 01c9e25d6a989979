//! Somebody else writes to the maps, as with bpftool: the agent finds it, names it, and puts it right.

use std::path::PathBuf;

use anyhow::{Result, ensure};
use aya::maps::{Array, HashMap as BpfHashMap, Map, MapData};
use proxy_common::abi::{Backend, Frontend, FrontendKey, Service, ServiceName, map};
use serde_json::Value;
use tests::{
    Source,
    stage::{BACKENDS, PATIENCE, Stage, VIP4, VIP6, answered_by, at, eventually},
};

type Hash<const K: usize, const V: usize> = BpfHashMap<MapData, [u8; K], [u8; V]>;

fn pin(stage: &Stage, name: &str) -> PathBuf {
    let root = stage.world.node("node-a").bpffs();
    root.join(proxy_user::maps::pin_directory_name()).join(name)
}

fn hash<const K: usize, const V: usize>(stage: &Stage, name: &str) -> Result<Hash<K, V>> {
    let data = MapData::from_pin(pin(stage, name))?;
    Ok(Map::HashMap(data).try_into()?)
}

fn array<const V: usize>(stage: &Stage, name: &str) -> Result<Array<MapData, [u8; V]>> {
    let data = MapData::from_pin(pin(stage, name))?;
    Ok(Map::Array(data).try_into()?)
}

fn frontends(stage: &Stage) -> Result<Hash<{ FrontendKey::SIZE }, { Frontend::SIZE }>> {
    hash(stage, map::FRONTENDS)
}

fn key(ip: &str, port: u16) -> FrontendKey {
    let at = at(ip, port);
    FrontendKey {
        addr: at.ip().into(),
        port_be: port.to_be(),
        protocol: 6,
        zero: 0,
    }
}

/// Removes a frontend, leads another astray, empties every Service, damages every backend, forgets a
/// name, and adds a frontend that is nobody's.
fn damage(stage: &Stage) -> Result<()> {
    let mut map = frontends(stage)?;
    let v4 = key(VIP4, 80).to_bytes();
    let v6 = key(VIP6, 80).to_bytes();
    let lost = Frontend {
        service: 4711,
        ..Frontend::from_bytes(map.get(&v6, 0)?)
    };
    map.remove(&v4)?;
    map.insert(v6, lost.to_bytes(), 0)?;
    map.insert(key("10.96.0.99", 80).to_bytes(), lost.to_bytes(), 0)?;
    let mut names: Hash<4, { ServiceName::SIZE }> = hash(stage, map::NAMES)?;
    let ids = names.keys().collect::<Result<Vec<_>, _>>()?;
    ensure!(ids.len() == 4, "two ports in two families: {ids:?}");
    names.remove(&ids[0])?;
    let mut services = array::<{ size_of::<Service>() }>(stage, map::SERVICES)?;
    for id in ids.iter().map(|id| u32::from_ne_bytes(*id)) {
        services.set(id, [0; size_of::<Service>()], 0)?;
    }
    let mut backends = array::<{ Backend::SIZE }>(stage, map::BACKENDS)?;
    for id in 1..64 {
        let mut backend = Backend::from_bytes(backends.get(&id, 0)?);
        if backend.service != 0 {
            backend.port_be = 1u16.to_be();
            backends.set(id, backend.to_bytes(), 0)?;
        }
    }
    Ok(())
}

/// Both families are served as if nothing had been.
fn served(stage: &Stage) -> Result<()> {
    for ip in [VIP4, VIP6] {
        let answers = stage.client().probe().connect_many(at(ip, 80), 60)?;
        answered_by(&answers, &BACKENDS)?;
    }
    let stray = frontends(stage)?.get(&key("10.96.0.99", 80).to_bytes(), 0);
    ensure!(stray.is_err(), "the stray frontend is still there");
    Ok(())
}

#[test]
fn status_verify_finds_what_was_changed_by_hand_and_puts_it_right() -> Result<()> {
    let stage = Stage::usual()?;
    let text = stage.agent.call(&["status", "--verify"])?;
    ensure!(text.ends_with("entries, all as they should be\n"), "{text}");

    damage(&stage)?;
    ensure!(served(&stage).is_err(), "the damage does damage");
    let Err(error) = stage.agent.call(&["status", "--verify", "--json"]) else {
        anyhow::bail!("the maps were changed, yet it exits with 0");
    };
    let error = format!("{error:#}");
    ensure!(error.contains("exit status: 5"), "{error}");
    served(&stage)?;
    stage
        .agent
        .wait_log("10.96.0.99:80/TCP was nobody's; gone now", PATIENCE)?;
    stage.agent.wait_log("Service default/web:http", PATIENCE)?;

    let text = stage.agent.call(&["status", "--verify", "--json"])?;
    let audited: Value = serde_json::from_str(&text)?;
    ensure!(
        audited["drifted"] == 0 && audited["checked"].as_u64() > Some(20),
        "{audited}"
    );
    Ok(())
}

#[test]
fn what_was_changed_by_hand_heals_by_itself() -> Result<()> {
    let mut stage = Stage::usual()?;
    let source = Source::Manifests(stage.manifests.path().to_owned());
    stage
        .agent
        .restart_with(source, &["--audit-interval", "50ms"])?;
    damage(&stage)?;
    eventually("the maps to be healed", || served(&stage))
}

#[test]
fn without_an_agent_verify_says_so() -> Result<()> {
    let mut stage = Stage::usual()?;
    stage.agent.kill();
    let Err(error) = stage.agent.call(&["status", "--verify"]) else {
        anyhow::bail!("nobody is there to be asked");
    };
    let error = format!("{error:#}");
    ensure!(
        error.contains("no agent runs here for the pins in"),
        "{error}"
    );
    // What it wrote works on.
    served(&stage)?;
    Ok(())
}
