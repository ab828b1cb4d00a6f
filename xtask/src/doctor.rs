//! `cargo xtask doctor`: what this machine has for kd, and whether the experiment can run on it.
//!
//! It asks files and other programs, and links neither candle nor CUDA: it starts where they don't.

use std::fmt::Write;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::{env, fs};

use anyhow::{Context, bail};
use serde::Serialize;

use crate::published::{Dataset, Size};
use crate::{data, workspace};

/// The compiler took 0.7 GiB for candle-core.
const MEMORY_NEEDED: u64 = 1 << 30;
/// A release build of `kd` has 0.6 GiB, CIFAR-10 and its archive 0.35; the rest is for runs.
const DISK_NEEDED: u64 = 2 << 30;
/// The oldest driver for each CUDA version (NVIDIA's release notes of the CUDA toolkit, table 2).
const DRIVERS: [(u32, u32); 3] = [(13, 580), (12, 525), (11, 450)];

#[derive(clap::Args)]
#[command(
    after_help = "Exit codes: 0 the experiment can run on the CPU, 1 it can't; standard error says why"
)]
pub struct Args {
    /// Where data sets lie [default: data/ in the checkout]
    #[arg(long, value_name = "DIR")]
    data: Option<PathBuf>,
    /// Print JSON
    #[arg(long)]
    json: bool,
}

/// What `--json` prints.
#[derive(Serialize)]
struct Machine {
    processor: Processor,
    memory: Memory,
    disk: Disk,
    cc: Option<String>,
    cargo: Option<String>,
    cuda: Cuda,
    data: Data,
    /// What keeps the experiment from running on the CPU; empty if nothing does.
    problems: Vec<String>,
}

#[derive(Serialize)]
struct Processor {
    name: Option<String>,
    threads: usize,
    /// Of those that kd-ops looks for.
    features: Vec<&'static str>,
    /// The code that kd-ops takes: `avx512`, `avx2` or `portable`.
    kd_ops: &'static str,
}

#[derive(Serialize)]
struct Memory {
    total_bytes: Option<u64>,
    available_bytes: Option<u64>,
}

#[derive(Serialize)]
struct Disk {
    folder: PathBuf,
    free_bytes: Option<u64>,
}

#[derive(Serialize)]
struct Cuda {
    gpus: Vec<String>,
    /// Version of the toolkit's compiler, nvcc.
    toolkit: Option<String>,
    driver: Option<String>,
    /// The newest CUDA that the driver knows.
    driver_cuda: Option<String>,
    /// Whether programs of this toolkit run on this driver; null where one of them is missing.
    fits: Option<bool>,
}

#[derive(Serialize)]
struct Data {
    folder: PathBuf,
    cifar10: Option<PathBuf>,
    /// What is wrong with CIFAR-10's files.
    damage: Option<String>,
}

pub fn command(args: &Args) -> anyhow::Result<()> {
    let machine = Machine::look(args.data.clone().unwrap_or_else(data::default_folder));
    match args.json {
        true => println!("{}", serde_json::to_string(&machine)?),
        false => print!("{}", machine.text()?),
    }
    match machine.problems.len() {
        0 => Ok(()),
        _ => bail!("the experiment can't run here: {}", machine.problems.join("; ")),
    }
}

impl Machine {
    fn look(data: PathBuf) -> Self {
        let mut machine = Self {
            processor: Processor::look(),
            memory: Memory::look(),
            disk: Disk::look(),
            cc: answer(&program("CC", "cc"), &["--version"]),
            cargo: answer(&program("CARGO", "cargo"), &["--version"]),
            cuda: Cuda::look(),
            data: Data::look(data),
            problems: Vec::new(),
        };
        machine.problems = machine.problems();
        machine
    }

    fn problems(&self) -> Vec<String> {
        let mut problems = Vec::new();
        if self.cc.is_none() {
            problems.push("there is no C compiler `cc`: install gcc or clang".to_owned());
        }
        let needed = env!("CARGO_PKG_RUST_VERSION");
        match &self.cargo {
            None => problems.push("cargo can't be started: install Rust with rustup".to_owned()),
            Some(found) if version(found) < version(needed) => {
                problems.push(format!("{found} is too old, {needed} is needed: `rustup update`"));
            }
            Some(_) => {}
        }
        if let Some(found) = self.memory.available_bytes.filter(|found| *found < MEMORY_NEEDED) {
            let needed = gib(MEMORY_NEEDED);
            problems.push(format!("{} of memory are left, {needed} are needed", gib(found)));
        }
        if let Some(found) = self.disk.free_bytes.filter(|found| *found < DISK_NEEDED) {
            let needed = gib(DISK_NEEDED);
            problems.push(format!("{} of disk are left, {needed} are needed", gib(found)));
        }
        if let Some(damage) = &self.data.damage {
            problems.push(format!("CIFAR-10 is damaged: {damage}"));
        }
        problems
    }

    fn text(&self) -> Result<String, std::fmt::Error> {
        let mut text = String::new();
        let unknown = || "unknown".to_owned();
        let amount = |bytes: Option<u64>| bytes.map_or_else(unknown, gib);
        let Processor { name, threads, features, kd_ops } = &self.processor;
        let name = name.clone().unwrap_or_else(unknown);
        writeln!(text, "processor  {name}, {threads} threads")?;
        let features = if features.is_empty() { "none".into() } else { features.join(", ") };
        writeln!(text, "           vector features {features}: kd-ops takes its {kd_ops} code")?;
        let Memory { total_bytes, available_bytes } = self.memory;
        writeln!(text, "memory     {}, {} free", amount(total_bytes), amount(available_bytes))?;
        let free = amount(self.disk.free_bytes);
        writeln!(text, "disk       {free} free for {}", self.disk.folder.display())?;
        let missing = || "not found".to_owned();
        writeln!(text, "cc         {}", self.cc.clone().unwrap_or_else(missing))?;
        writeln!(text, "cargo      {}", self.cargo.clone().unwrap_or_else(missing))?;
        writeln!(text, "CUDA       {}", self.cuda.text())?;
        writeln!(text, "           {}", self.cuda.advice())?;
        writeln!(text, "CIFAR-10   {}", self.data.text())?;
        if self.problems.is_empty() {
            writeln!(text, "\nThe experiment can run on the CPU: `cargo xtask reproduce`")?;
        }
        Ok(text)
    }
}

impl Processor {
    fn look() -> Self {
        let info = fs::read_to_string("/proc/cpuinfo").unwrap_or_default();
        let name = info.lines().find_map(|line| line.strip_prefix("model name"));
        let name = name.and_then(|line| line.split_once(':')).map(|(_, name)| name.trim().into());
        let features = features();
        // As kd-ops' simd.rs chooses.
        let has = |names: &[&str]| names.iter().all(|name| features.contains(name));
        let kd_ops = match () {
            () if has(&["avx512f", "avx2", "fma"]) => "avx512",
            () if has(&["avx2", "fma"]) => "avx2",
            () => "portable",
        };
        let threads = std::thread::available_parallelism().map_or(1, usize::from);
        Self { name, threads, features, kd_ops }
    }
}

#[cfg(target_arch = "x86_64")]
fn features() -> Vec<&'static str> {
    let all = [
        ("avx2", is_x86_feature_detected!("avx2")),
        ("fma", is_x86_feature_detected!("fma")),
        ("avx512f", is_x86_feature_detected!("avx512f")),
    ];
    all.into_iter().filter(|(_, found)| *found).map(|(name, _)| name).collect()
}

#[cfg(not(target_arch = "x86_64"))]
fn features() -> Vec<&'static str> {
    Vec::new()
}

impl Memory {
    fn look() -> Self {
        let info = fs::read_to_string("/proc/meminfo").unwrap_or_default();
        let value = |name: &str| {
            let line = info.lines().find_map(|line| line.strip_prefix(name))?;
            let kib: u64 = line.trim().strip_suffix("kB")?.trim().parse().ok()?;
            Some(kib << 10)
        };
        Self { total_bytes: value("MemTotal:"), available_bytes: value("MemAvailable:") }
    }
}

impl Disk {
    fn look() -> Self {
        let folder = workspace::root();
        Self { free_bytes: free_bytes(&folder), folder }
    }
}

#[cfg(unix)]
fn free_bytes(folder: &Path) -> Option<u64> {
    let disk = rustix::fs::statvfs(folder).ok()?;
    Some(disk.f_bavail.saturating_mul(disk.f_frsize))
}

#[cfg(not(unix))]
fn free_bytes(_: &Path) -> Option<u64> {
    None
}

impl Cuda {
    fn look() -> Self {
        let toolkit = toolkit_folders().find_map(|folder| {
            let nvcc = folder.join("nvcc");
            let said = answer_whole(&nvcc, &["--version"])?;
            Some(after(&said, "release ")?.trim_end_matches(',').to_owned())
        });
        let smi = answer_whole("nvidia-smi".as_ref(), &[]);
        let driver_cuda = smi.as_deref().and_then(|said| after(said, "CUDA Version: "));
        let list = ["--query-gpu=name,driver_version", "--format=csv,noheader"];
        let list = answer_whole("nvidia-smi".as_ref(), &list).unwrap_or_default();
        let gpus: Vec<_> = list.lines().filter_map(|line| line.rsplit_once(", ")).collect();
        let driver = match gpus.first() {
            Some((_, driver)) => Some((*driver).to_owned()),
            None => {
                driver_in(&fs::read_to_string("/proc/driver/nvidia/version").unwrap_or_default())
            }
        };
        let fits = fits(toolkit.as_deref(), driver_cuda, driver.as_deref());
        Self {
            gpus: gpus.into_iter().map(|(name, _)| name.to_owned()).collect(),
            driver_cuda: driver_cuda.map(str::to_owned),
            toolkit,
            driver,
            fits,
        }
    }

    fn text(&self) -> String {
        let toolkit = match &self.toolkit {
            Some(version) => format!("toolkit {version}"),
            None => "no toolkit (nvcc)".into(),
        };
        let driver = match (&self.driver, &self.driver_cuda) {
            (Some(driver), Some(cuda)) => format!("driver {driver} for CUDA {cuda}"),
            (Some(driver), None) => format!("driver {driver}"),
            (None, _) => "no driver".into(),
        };
        let fits = match self.fits {
            Some(true) => ", which fit",
            Some(false) => {
                ": the driver is older than the toolkit; update it, or take an older toolkit"
            }
            None => "",
        };
        let gpus = if self.gpus.is_empty() { "no GPU".into() } else { self.gpus.join(", ") };
        format!("{gpus}; {toolkit}, {driver}{fits}")
    }

    /// What can be done with that.
    fn advice(&self) -> &'static str {
        match (self.gpus.is_empty(), &self.toolkit, self.fits) {
            (true, ..) => "kd computes on the CPU",
            (false, None, _) => {
                "kd computes on the CPU; for the GPU install NVIDIA's CUDA toolkit, so that nvcc is found"
            }
            (false, Some(_), Some(false)) => "kd computes on the CPU until they fit",
            (false, Some(_), _) => {
                "`--device cuda` builds kd for the GPU; that has not been measured yet"
            }
        }
    }
}

/// Where nvcc may be.
fn toolkit_folders() -> impl Iterator<Item = PathBuf> {
    let named = ["CUDA_HOME", "CUDA_PATH", "CUDA_ROOT", "CUDA_TOOLKIT_ROOT_DIR"];
    let named = named.into_iter().filter_map(env::var_os).map(|home| Path::new(&home).join("bin"));
    let path = env::var_os("PATH").unwrap_or_default();
    let path: Vec<_> = env::split_paths(&path).collect();
    named.chain(path).chain([PathBuf::from("/usr/local/cuda/bin")])
}

/// Whether the driver knows the toolkit's CUDA.
fn fits(toolkit: Option<&str>, driver_cuda: Option<&str>, driver: Option<&str>) -> Option<bool> {
    let toolkit = version(toolkit?);
    if let Some(cuda) = driver_cuda {
        return Some(version(cuda) >= toolkit);
    }
    let (_, needed) = DRIVERS.into_iter().find(|(cuda, _)| *cuda == toolkit.0)?;
    Some(version(driver?).0 >= needed)
}

/// The version in `/proc/driver/nvidia/version`: `NVRM version: NVIDIA UNIX ... Module  580.82.07  ...`.
fn driver_in(text: &str) -> Option<String> {
    let line = text.lines().find(|line| line.starts_with("NVRM version"))?;
    let is_version =
        |word: &&str| word.contains('.') && word.chars().all(|c| c == '.' || c.is_ascii_digit());
    line.split_whitespace().find(is_version).map(str::to_owned)
}

impl Data {
    fn look(folder: PathBuf) -> Self {
        let cifar10 = data::find(&folder, Dataset::Cifar10);
        let damage = cifar10.as_deref().and_then(|cifar10| check_labels(cifar10).err());
        Self { folder, cifar10, damage: damage.map(|error| format!("{error:#}")) }
    }

    fn text(&self) -> String {
        match (&self.cifar10, &self.damage) {
            (None, _) => format!(
                "not in {}: `cargo xtask data` brings it; without it there is the synthetic set",
                self.folder.display()
            ),
            (Some(_), Some(damage)) => damage.clone(),
            (Some(folder), None) => format!("in {}, every record checked", folder.display()),
        }
    }
}

/// Every record must start with a label; the files' lengths are right already.
fn check_labels(folder: &Path) -> anyhow::Result<()> {
    for file in Dataset::Cifar10.archive().files {
        if !matches!(file.size, Size::Exactly(_)) {
            continue;
        }
        let path = folder.join(file.name);
        let bytes = fs::read(&path).with_context(|| format!("cannot read {}", path.display()))?;
        if let Some(number) = bytes.chunks(1 + 3072).position(|record| record[0] > 9) {
            bail!(
                "{}: record {number} has the label {}, expected 0 to 9; remove {}, and `cargo xtask data` brings it again",
                path.display(),
                bytes[number * 3073],
                folder.display()
            );
        }
    }
    Ok(())
}

/// A program that a variable may name.
fn program(variable: &str, default: &str) -> PathBuf {
    env::var_os(variable).filter(|name| !name.is_empty()).map_or(default.into(), PathBuf::from)
}

/// The first line that a program prints, if it starts and succeeds.
fn answer(program: &Path, arguments: &[&str]) -> Option<String> {
    let said = answer_whole(program, arguments)?;
    said.lines().next().map(|line| line.trim().to_owned())
}

fn answer_whole(program: &Path, arguments: &[&str]) -> Option<String> {
    let mut command = Command::new(program);
    command.args(arguments).stdin(Stdio::null()).stderr(Stdio::null());
    let output = command.output().ok().filter(|output| output.status.success())?;
    Some(String::from_utf8_lossy(&output.stdout).into_owned())
}

/// The word behind `marker`.
fn after<'a>(text: &'a str, marker: &str) -> Option<&'a str> {
    text.split_once(marker)?.1.split_whitespace().next()
}

/// The first number in the text and the one behind its dot.
fn version(text: &str) -> (u32, u32) {
    let digits = text.trim_start_matches(|c: char| !c.is_ascii_digit());
    let mut numbers =
        digits.split(|c: char| !c.is_ascii_digit()).map(|part| part.parse().unwrap_or(0));
    (numbers.next().unwrap_or(0), numbers.next().unwrap_or(0))
}

fn gib(bytes: u64) -> String {
    format!("{:.1} GiB", bytes as f64 / f64::from(1 << 30))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_driver_fits_the_toolkits_of_its_cuda_and_older() {
        assert_eq!(fits(Some("13.0"), Some("13.0"), None), Some(true));
        assert_eq!(fits(Some("12.9"), Some("13.0"), None), Some(true));
        assert_eq!(fits(Some("13.1"), Some("13.0"), None), Some(false));
        assert_eq!(fits(Some("13.0"), Some("12.10"), None), Some(false));
        assert_eq!(fits(Some("13.0"), None, Some("580.82.07")), Some(true));
        assert_eq!(fits(Some("13.0"), None, Some("570.10")), Some(false));
        assert_eq!(fits(Some("13.0"), None, None), None);
        assert_eq!(fits(None, Some("13.0"), Some("580.1")), None);
    }

    #[test]
    fn the_drivers_version_is_found_in_its_file() {
        let text = "NVRM version: NVIDIA UNIX Open Kernel Module for x86_64  580.82.07  Release Build  (dvs-builder)  Wed Aug 27 2025\nGCC version:  gcc version 12.3.0 (Ubuntu)\n";
        assert_eq!(driver_in(text).as_deref(), Some("580.82.07"));
        let text = "NVRM version: NVIDIA UNIX x86_64 Kernel Module  535.183.01  Sun May 12\n";
        assert_eq!(driver_in(text).as_deref(), Some("535.183.01"));
        assert_eq!(driver_in(""), None);
    }

    #[test]
    fn versions_are_compared_as_numbers() {
        assert_eq!(version("cargo 1.95.0 (abc)"), (1, 95));
        assert!(version("cargo 1.100.0") > version("1.95"));
        assert_eq!(version("none"), (0, 0));
    }
}
