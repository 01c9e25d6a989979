//! The files of the image: as the one layer of an archive, or in a directory.

use std::{
    collections::BTreeSet, fs, io::Write as _, os::unix::fs::PermissionsExt as _, path::Path,
};

use anyhow::{Context as _, Result};
use flate2::{Compression, GzBuilder};
use tar::{Builder, EntryType, Header};

use super::{ALIAS, BINARY, Image};

/// A tar, everything root's, folders first, all of one time.
pub(super) fn layer(image: &Image, epoch: u64) -> Result<Vec<u8>> {
    let mut tar = Builder::new(Vec::new());
    for folder in folders(image) {
        let mut header = header(EntryType::Directory, 0o755, epoch);
        append(&mut tar, &mut header, &folder, &[])?;
    }
    for file in &image.files {
        let mut header = header(EntryType::Regular, file.mode, epoch);
        append(&mut tar, &mut header, &relative(&file.path), &file.content)?;
    }
    let mut link = header(EntryType::Symlink, 0o777, epoch);
    link.set_size(0);
    let name = Path::new(BINARY)
        .file_name()
        .context("the program has no name")?;
    tar.append_link(&mut link, relative(Path::new(ALIAS)), name)?;
    Ok(tar.into_inner()?)
}

/// A file's header in every tar of ours.
pub(super) fn header(kind: EntryType, mode: u32, epoch: u64) -> Header {
    let mut header = Header::new_ustar();
    header.set_entry_type(kind);
    header.set_mode(mode);
    header.set_mtime(epoch);
    header.set_uid(0);
    header.set_gid(0);
    header
}

pub(super) fn append(
    tar: &mut Builder<Vec<u8>>,
    header: &mut Header,
    path: &str,
    content: &[u8],
) -> Result<()> {
    header.set_size(content.len() as u64);
    tar.append_data(header, path, content)
        .with_context(|| path.to_owned())
}

/// Neither the time nor the name of anything.
pub(super) fn compressed(layer: &[u8]) -> Result<Vec<u8>> {
    let mut gzip = GzBuilder::new().write(Vec::new(), Compression::best());
    gzip.write_all(layer)?;
    Ok(gzip.finish()?)
}

fn relative(path: &Path) -> String {
    path.to_string_lossy().trim_start_matches('/').to_owned()
}

/// Those above the files, each before what is in it.
fn folders(image: &Image) -> BTreeSet<String> {
    let parents = image
        .files
        .iter()
        .flat_map(|file| file.path.ancestors().skip(1));
    parents
        .map(relative)
        .filter(|path| !path.is_empty())
        .map(|path| format!("{path}/"))
        .collect()
}

impl Image {
    /// Writes its files below a directory.
    ///
    /// # Errors
    /// The directory can't be written.
    pub fn write_below(&self, root: &Path) -> Result<()> {
        for file in &self.files {
            let path = root.join(relative(&file.path));
            let write = || -> std::io::Result<()> {
                fs::create_dir_all(path.parent().unwrap_or(root))?;
                fs::write(&path, &file.content)?;
                fs::set_permissions(&path, fs::Permissions::from_mode(file.mode))
            };
            write().with_context(|| format!("write {}", path.display()))?;
        }
        let alias = root.join(relative(Path::new(ALIAS)));
        if fs::symlink_metadata(&alias).is_ok() {
            fs::remove_file(&alias)?;
        }
        let name = Path::new(BINARY)
            .file_name()
            .context("the program has no name")?;
        std::os::unix::fs::symlink(name, &alias)
            .with_context(|| format!("link {}", alias.display()))
    }
}
