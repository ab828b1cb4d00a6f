//! Where the checkout lies, and cargo as the commands start it.

use std::path::{Path, PathBuf};
use std::process::Command;

/// The folder with the workspace's `Cargo.toml`.
pub fn root() -> PathBuf {
    let of_package = std::env::var_os("CARGO_MANIFEST_DIR")
        .map_or_else(|| PathBuf::from(env!("CARGO_MANIFEST_DIR")), PathBuf::from);
    of_package.parent().map_or(of_package.clone(), Path::to_path_buf)
}

/// The path as a reader in the current folder would write it.
pub fn short(path: &Path) -> String {
    let relative = std::env::current_dir().ok().and_then(|here| path.strip_prefix(here).ok());
    match relative {
        Some(relative) if relative.as_os_str().is_empty() => ".".to_owned(),
        Some(relative) => relative.display().to_string(),
        None => path.display().to_string(),
    }
}

/// Cargo in the workspace's folder, without what `cargo run` told this process about itself:
/// build scripts that watch these variables would run anew each time.
pub fn cargo() -> Command {
    let mut command = Command::new(std::env::var_os("CARGO").unwrap_or_else(|| "cargo".into()));
    command.current_dir(root());
    for (name, _) in std::env::vars_os() {
        let text = name.to_string_lossy();
        let of_package = text.starts_with("CARGO_PKG_") || text.starts_with("CARGO_BIN_");
        if of_package || matches!(&*text, "CARGO_MANIFEST_DIR" | "CARGO_MANIFEST_PATH") {
            command.env_remove(&name);
        }
    }
    command
}
