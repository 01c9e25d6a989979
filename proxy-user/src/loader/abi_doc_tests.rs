//! docs/ABI.md says what there is: its tables are made here of the code, and compared.

use std::{
    collections::{BTreeMap, BTreeSet},
    fmt::Write as _,
    fs,
    path::{Path, PathBuf},
};

use proxy_common::abi::{
    ABI_VERSION, Addr, AffinityEntry, AffinityKey, AttemptFailure, Backend, BackendStats, Client,
    Counter, Device, FlowEntry, FragmentKey, FragmentPorts, Frontend, FrontendKey, Inquiry,
    MonitorEvent, MonitorFilter, MonitorHook, NetKey, Service, ServiceName, ServiceStats, SockAddr,
    SocketCookie, SocketFlow, SourceRange, SourceRangeKey, Tuple, UdpFlow, UdpFlowKey, map,
};

use super::{
    super::{pins::Pins, sizes::Sizes},
    LAYOUTS,
};

const PAGE: &str = include_str!(concat!(env!("CARGO_MANIFEST_DIR"), "/../docs/ABI.md"));
const MAPS: &str = include_str!(concat!(
    env!("CARGO_MANIFEST_DIR"),
    "/../proxy-ebpf/src/maps.rs"
));

/// Name, size, and of each field its name, offset and size.
type Struct = (&'static str, usize, &'static [(&'static str, usize, usize)]);

macro_rules! structs {
    ($($name:ident),* $(,)?) => { [$( (stringify!($name), $name::SIZE, $name::LAYOUT) ),*] };
}

/// In the order in which a reader meets them.
const STRUCTS: [Struct; 27] = structs![
    SockAddr,
    FrontendKey,
    Frontend,
    Service,
    Backend,
    ServiceName,
    SourceRangeKey,
    SourceRange,
    NetKey,
    AffinityKey,
    Client,
    AffinityEntry,
    SocketCookie,
    SocketFlow,
    UdpFlowKey,
    UdpFlow,
    Tuple,
    FlowEntry,
    FragmentKey,
    FragmentPorts,
    Device,
    ServiceStats,
    BackendStats,
    MonitorFilter,
    MonitorEvent,
    AttemptFailure,
    Inquiry,
];

fn repository() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("..")
}

/// The sources in which numbers and structs of the ABI are written down.
fn abi_sources() -> Vec<String> {
    let folder = repository().join("proxy-common/src");
    let mut paths: Vec<PathBuf> = fs::read_dir(folder.join("abi"))
        .unwrap()
        .map(|entry| entry.unwrap().path())
        .collect();
    paths.sort();
    paths.push(folder.join("datapath/conntrack.rs"));
    let read = |path: &PathBuf| fs::read_to_string(path).unwrap();
    paths.iter().map(read).collect()
}

/// A struct as the source has it: what it is, and of each field its type and meaning, by its name.
#[derive(Default)]
struct Written {
    meaning: String,
    fields: BTreeMap<String, (String, String)>,
}

/// Sentences of a doc comment as they are in a table's cell.
fn plain(doc: &[&str]) -> String {
    let text = doc.join(" ").replace("  ", " ");
    text.replace("[`", "`")
        .replace("`]", "`")
        .replace("Self::", "")
        .replace('|', "\\|")
        .trim()
        .to_owned()
}

/// What `abi_struct!` defines: all that is public and indented.
fn written_structs() -> BTreeMap<String, Written> {
    let mut found: BTreeMap<String, Written> = BTreeMap::new();
    for source in abi_sources() {
        let (mut doc, mut current) = (Vec::new(), None::<String>);
        for line in source.lines() {
            let text = line.trim();
            if let Some(comment) = text.strip_prefix("///") {
                doc.push(comment.trim());
                continue;
            }
            if text.starts_with("#[") {
                continue;
            }
            if let Some(rest) = line.strip_prefix("    pub struct ")
                && let Some(name) = rest.strip_suffix(" {")
                && !name.starts_with('$')
            {
                current = Some(name.to_owned());
                let meaning = plain(&doc);
                found.entry(name.to_owned()).or_default().meaning = meaning;
            } else if text == "}" {
                current = None;
            } else if let Some(name) = &current
                && let Some((field, kind)) = text
                    .strip_prefix("pub ")
                    .and_then(|rest| rest.strip_suffix(',')?.split_once(": "))
            {
                let written = found.get_mut(name).unwrap();
                let said = (kind.to_owned(), plain(&doc));
                written.fields.insert(field.to_owned(), said);
            }
            doc.clear();
        }
    }
    found
}

/// Numbers of enumerations and bits: of what, name, number, meaning.
fn numbers() -> Vec<[String; 4]> {
    let mut found = Vec::new();
    for source in abi_sources() {
        let (mut doc, mut of) = (Vec::new(), None::<String>);
        for line in source.lines() {
            let text = line.trim();
            if let Some(comment) = text.strip_prefix("///") {
                doc.push(comment.trim());
                continue;
            }
            let begins = ["pub enum ", "impl ", "pub mod "]
                .iter()
                .find_map(|word| line.strip_prefix(word)?.strip_suffix(" {"));
            if let Some(name) = begins {
                of = Some(match name {
                    "state" => "FlowEntry::state".to_owned(),
                    name => name.to_owned(),
                });
            } else if line == "}" {
                of = None;
            } else if let Some(of) = &of
                && let Some((name, number)) = numbered(text)
            {
                found.push([of.clone(), name.to_owned(), number.to_string(), plain(&doc)]);
            }
            doc.clear();
        }
    }
    found
}

/// `Name = 1,` or `pub const NAME: u8 = 1;`
fn numbered(text: &str) -> Option<(&str, u32)> {
    let (name, number) = match text.strip_prefix("pub const ") {
        Some(rest) => {
            let (name, rest) = rest.split_once(": ")?;
            let (kind, number) = rest.strip_suffix(';')?.split_once(" = ")?;
            if !["u8", "u32"].contains(&kind) {
                return None;
            }
            (name, number)
        }
        None => text.strip_suffix(',')?.split_once(" = ")?,
    };
    Some((name, number.parse().ok()?))
}

/// A map as the kernel side declares it.
struct Declared {
    kind: String,
    key: String,
    value: String,
    /// As the source says it: the loader sets most sizes.
    entries: String,
    flag: &'static str,
}

fn declared_maps() -> BTreeMap<String, Declared> {
    let mut found = BTreeMap::new();
    for part in MAPS.split("#[btf_map(name = \"").skip(1) {
        let (name, rest) = part.split_once('"').unwrap();
        let declaration = rest.split(';').next().unwrap();
        let (_, of) = declaration.split_once(": ").unwrap();
        let (kind, rest) = of.split_once('<').unwrap();
        let arguments: Vec<&str> = rest
            .rsplit_once("> =")
            .unwrap()
            .0
            .split(',')
            .map(str::trim)
            .collect();
        let (key, value, entries) = match (kind, &arguments[..]) {
            ("RingBuf", [record, bytes, ..]) => ("", *record, *bytes),
            ("Array" | "PerCpuArray", [value, entries, ..]) => ("u32", *value, *entries),
            (_, [key, value, entries, ..]) => (*key, *value, *entries),
            _ => panic!("{name}: {declaration}"),
        };
        let flag = if declaration.contains("SHARED") {
            "MMAPABLE"
        } else if declaration.contains("NO_PREALLOC") || kind == "LpmTrie" {
            "NO_PREALLOC"
        } else {
            ""
        };
        let key = match (kind, key) {
            ("LpmTrie", "SourceRange") => "SourceRangeKey",
            ("LpmTrie", "Addr") => "NetKey",
            (_, key) => key,
        };
        found.insert(
            name.to_owned(),
            Declared {
                kind: kind.to_owned(),
                key: key.to_owned(),
                value: value.to_owned(),
                entries: entries.to_owned(),
                flag,
            },
        );
    }
    found
}

fn size_of_type(name: &str) -> usize {
    match name {
        "u32" => size_of::<u32>(),
        "u64" => size_of::<u64>(),
        "Addr" => size_of::<Addr>(),
        name => {
            let found = STRUCTS.iter().find(|(of, _, _)| *of == name);
            found.unwrap_or_else(|| panic!("no struct {name}")).1
        }
    }
}

/// What the page has between two marks.
fn section(name: &str) -> &'static str {
    let begin = format!("<!-- {name} -->\n\n");
    let (_, rest) = PAGE
        .split_once(&begin)
        .unwrap_or_else(|| panic!("docs/ABI.md has no <!-- {name} -->"));
    rest.split_once("\n<!-- end -->").unwrap().0
}

/// Without the blanks of empty cells.
fn tidy(table: &str) -> String {
    table.replace("|  |", "| |").replace("|  |", "| |")
}

#[track_caller]
fn assert_section(name: &str, wanted: &str) {
    let wanted = tidy(wanted);
    assert!(
        section(name) == wanted,
        "in docs/ABI.md, what is behind <!-- {name} --> should be:\n\n{wanted}"
    );
}

/// The first cells of a table, which are code.
fn first_cells(table: &str) -> Vec<String> {
    let rows = table.lines().filter_map(|line| line.strip_prefix("| `"));
    rows.map(|row| row.split('`').next().unwrap().to_owned())
        .collect()
}

#[test]
fn the_page_on_the_abi_is_of_this_version() {
    assert!(
        PAGE.contains(&format!("The version is **{ABI_VERSION}**")),
        "docs/ABI.md speaks of another version than {ABI_VERSION}"
    );
}

#[test]
fn the_page_on_the_abi_has_every_pinned_map() {
    let declared = declared_maps();
    let sizes = Sizes::DEFAULT.all();
    let mut table =
        "| map | type | key, bytes | value, bytes | entries | flag | KiB | part | since |\n\
                     |---|---|---|---|---|---|---|---|---|\n"
            .to_owned();
    let cell = |name: &str, bytes: usize| match name {
        "" => String::new(),
        name => format!("`{name}`, {bytes}"),
    };
    for name in map::ALL {
        let layout = LAYOUTS.iter().find(|layout| layout.name == *name).unwrap();
        let there = &declared[*name];
        // Both sides say what the map is, each for itself.
        let kind = format!("{:?}", layout.kind);
        assert_eq!(there.kind.replace("HashMap", "Hash"), kind, "{name}");
        if kind != "RingBuf" {
            let both = [size_of_type(&there.key), size_of_type(&there.value)];
            assert_eq!([layout.key, layout.value], both, "{name}");
        }
        let size = sizes.iter().find(|size| size.map == *name);
        let entries = size.map_or(there.entries.clone(), |size| size.entries.to_string());
        let flag = size.and_then(|size| size.flag).map(|flag| flag.name);
        let bytes = size.map_or(0, |size| layout.memory_bytes(size.entries));
        let key = cell(&there.key, layout.key);
        let value = match kind.as_str() {
            "RingBuf" => cell(&there.value, size_of_type(&there.value)),
            _ => cell(&there.value, layout.value),
        };
        let kind = match there.flag {
            "" => kind,
            flag => format!("{kind}, {flag}"),
        };
        writeln!(
            table,
            "| `{name}` | {kind} | {key} | {value} | {entries} | {} | {} | {:?} | {} |",
            flag.map(|flag| format!("`{flag}`")).unwrap_or_default(),
            match bytes {
                0 => String::new(),
                bytes => bytes.div_ceil(1024).to_string(),
            },
            layout.part,
            layout.since,
        )
        .unwrap();
    }
    assert_section("maps", &table);
}

#[test]
fn the_page_on_the_abi_says_of_every_map_who_uses_it() {
    assert_eq!(first_cells(section("users")), map::ALL);
    let pinned: BTreeSet<&str> = map::ALL.iter().copied().collect();
    let declared = declared_maps();
    let others: BTreeSet<String> = declared
        .into_keys()
        .filter(|name| !pinned.contains(name.as_str()))
        .collect();
    let said = first_cells(section("not pinned"));
    assert_eq!(said.into_iter().collect::<BTreeSet<_>>(), others);
}

#[test]
fn the_page_on_the_abi_has_every_constant_of_the_programs() {
    let declared: Vec<String> = MAPS
        .lines()
        .filter_map(|line| {
            let rest = line.strip_prefix("pub(crate) static ")?;
            Some(rest.split_once(": Global<")?.0.to_owned())
        })
        .collect();
    assert!(!declared.is_empty());
    assert_eq!(first_cells(section("constants")), declared);
}

#[test]
fn the_page_on_the_abi_has_every_byte_of_every_struct() {
    let written = written_structs();
    let listed: BTreeSet<&str> = STRUCTS.iter().map(|(name, _, _)| *name).collect();
    assert_eq!(
        written.keys().map(String::as_str).collect::<BTreeSet<_>>(),
        listed
    );
    let mut text = String::new();
    for (name, size, fields) in STRUCTS {
        let said = &written[name];
        write!(
            text,
            "### {name}: {size} bytes\n\n{}\n\n\
             | offset | bytes | field | type | |\n|---|---|---|---|---|\n",
            said.meaning
        )
        .unwrap();
        for (field, offset, bytes) in fields {
            let (kind, meaning) = &said.fields[*field];
            writeln!(
                text,
                "| {offset} | {bytes} | `{field}` | `{kind}` | {meaning} |"
            )
            .unwrap();
        }
        text.push('\n');
    }
    assert_section("structs", &format!("{}\n", text.trim_end()));
}

#[test]
fn the_page_on_the_abi_has_every_number() {
    let mut table = "| of | name | number | |\n|---|---|---|---|\n".to_owned();
    for [of, name, number, meaning] in numbers() {
        writeln!(table, "| `{of}` | `{name}` | {number} | {meaning} |").unwrap();
    }
    // Of the types, not of the text: that the text was understood.
    for hook in MonitorHook::ALL {
        let row = format!("| `MonitorHook` | `{hook:?}` | {} | |", hook as u8);
        assert!(tidy(&table).contains(&row), "{row}");
    }
    assert_section("numbers", &table);
}

#[test]
fn the_page_on_the_abi_has_every_counter() {
    let mut table = "| number | counter | kind | counts |\n|---|---|---|---|\n".to_owned();
    for counter in Counter::ALL {
        writeln!(
            table,
            "| {} | `{}` | {} | {} |",
            counter.index(),
            counter.name(),
            counter.kind().name(),
            counter.meaning().trim()
        )
        .unwrap();
    }
    assert_section("counters", &table);
}

/// Names below the directory of pins.
#[test]
fn the_page_on_the_abi_has_every_pin() {
    let pins = Pins::new(Path::new("<bpffs>"));
    let mut wanted = vec![format!("{}/", pins.directory().display())];
    for program in programs() {
        let link = match program.strip_prefix("kp_tc_") {
            Some(_) => pins.device_link(&program, 7),
            None => pins.link(&program),
        };
        let link = link.file_name().unwrap().to_string_lossy().into_owned();
        wanted.push(link.replace("_at_7", "_at_<ifindex>"));
    }
    let block = section("pins");
    for name in &wanted {
        assert!(
            block
                .lines()
                .any(|line| line.split_whitespace().next() == Some(name)),
            "docs/ABI.md does not have {name}"
        );
    }
    let links = block
        .lines()
        .filter(|line| line.trim_start().starts_with("link_"));
    assert_eq!(links.count(), wanted.len() - 1);
}

/// All that are attached: of sockets, and of packets.
fn programs() -> Vec<String> {
    let folder = repository().join("proxy-ebpf/src/program");
    let mut found = Vec::new();
    for file in ["cgroup.rs", "tc.rs"] {
        let source = fs::read_to_string(folder.join(file)).unwrap();
        let names = source.lines().filter_map(|line| {
            let rest = line.strip_prefix("pub(crate) fn ")?;
            Some(rest.split_once('(')?.0.to_owned())
        });
        found.extend(names);
    }
    assert!(found.len() > 10);
    found
}
