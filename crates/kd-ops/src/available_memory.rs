//! How much memory a process may take: what the machine has free, and what its control groups allow.

use std::path::{Path, PathBuf};

/// The bytes that this process may take in all, those that it has already among them: the least of what the system has free and
/// of what the limits of its control groups (version 1 and 2) leave. `None` where the system does not tell, as elsewhere than
/// on Linux.
pub fn memory_limit() -> Option<u64> {
    Some(available_below(Path::new("/"))?.saturating_add(resident_memory()?))
}

/// The bytes of this process that lie in memory; `None` elsewhere than on Linux.
pub fn resident_memory() -> Option<u64> {
    status("VmRSS:")
}

/// The most bytes of this process that have lain in memory at once; `None` elsewhere than on Linux.
pub fn peak_memory() -> Option<u64> {
    status("VmHWM:")
}

/// A number of bytes of `/proc/self/status`.
fn status(name: &str) -> Option<u64> {
    kibibytes(&std::fs::read_to_string("/proc/self/status").ok()?, name)
}

/// The number that stands in kB behind `name` in a text of lines, in bytes.
fn kibibytes(text: &str, name: &str) -> Option<u64> {
    let number = text.lines().find_map(|line| line.strip_prefix(name))?;
    number.trim().strip_suffix("kB")?.trim().parse::<u64>().ok()?.checked_mul(1024)
}

/// The bytes that can still be taken, on a system whose files lie below `root`.
fn available_below(root: &Path) -> Option<u64> {
    let text = std::fs::read_to_string(root.join("proc/meminfo")).ok()?;
    let free = kibibytes(&text, "MemAvailable:")?;
    let groups = std::fs::read_to_string(root.join("proc/self/cgroup")).unwrap_or_default();
    let left = groups.lines().filter_map(|line| left_in_group(root, line));
    Some(left.fold(free, u64::min))
}

/// What the limits of a control group, a line of `/proc/self/cgroup`, and of those above it leave.
fn left_in_group(root: &Path, line: &str) -> Option<u64> {
    let mut fields = line.splitn(3, ':');
    let (_, controllers, path) = (fields.next()?, fields.next()?, fields.next()?);
    let mounts: &[&str] = match controllers {
        // Version 2, alone or beside version 1.
        "" => &["sys/fs/cgroup", "sys/fs/cgroup/unified"],
        names if names.split(',').any(|name| name == "memory") => &["sys/fs/cgroup/memory"],
        _ => return None,
    };
    let left = mounts.iter().flat_map(|mount| {
        let mount = root.join(mount);
        let below = Path::new(path.trim_start_matches('/'));
        // In a container the path may be the host's: then only the mount itself, the last of these, is there.
        let groups: Vec<PathBuf> = below.ancestors().map(|group| mount.join(group)).collect();
        groups.into_iter().filter_map(|group| left_in_folder(&group))
    });
    left.min()
}

/// What a control group's own limit leaves; `None` where it has none.
fn left_in_folder(group: &Path) -> Option<u64> {
    let read = |name: &str| std::fs::read_to_string(group.join(name)).ok();
    let number = |name: &str| read(name)?.trim().parse::<u64>().ok();
    let versions = [
        ("memory.max", "memory.current", "inactive_file "),
        ("memory.limit_in_bytes", "memory.usage_in_bytes", "total_inactive_file "),
    ];
    versions.into_iter().find_map(|(limit, used, cached)| {
        let (limit, used) = (number(limit)?, number(used)?);
        // Files that the system holds in memory and gives up when memory is asked for.
        let statistics = read("memory.stat").unwrap_or_default();
        let cached = statistics.lines().find_map(|line| line.strip_prefix(cached));
        let cached = cached.and_then(|bytes| bytes.trim().parse().ok()).unwrap_or(0);
        Some(limit.saturating_sub(used.saturating_sub(cached)))
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A folder with these files.
    fn system(files: &[(&str, &str)]) -> tempfile::TempDir {
        let root = tempfile::tempdir().unwrap();
        for (path, text) in files {
            let path = root.path().join(path);
            std::fs::create_dir_all(path.parent().unwrap()).unwrap();
            std::fs::write(path, text).unwrap();
        }
        root
    }

    const MEMINFO: (&str, &str) =
        ("proc/meminfo", "MemTotal: 16000 kB\nMemFree: 10 kB\nMemAvailable:    8000 kB\n");

    fn available(files: &[(&str, &str)]) -> Option<u64> {
        let all: Vec<_> = [MEMINFO].iter().chain(files).copied().collect();
        available_below(system(&all).path())
    }

    #[test]
    fn without_limits_what_the_system_has_free_counts() {
        assert_eq!(available(&[]), Some(8_192_000));
        assert_eq!(
            available(&[("proc/self/cgroup", "0::/\n3:cpu:/a\nnonsense\n")]),
            Some(8_192_000)
        );
        let none = ("sys/fs/cgroup/a/memory.max", "max\n");
        assert_eq!(available(&[("proc/self/cgroup", "0::/a"), none]), Some(8_192_000));
        assert_eq!(available_below(system(&[]).path()), None);
        let nonsense = system(&[("proc/meminfo", "MemAvailable: many kB\n")]);
        assert_eq!(available_below(nonsense.path()), None);
    }

    #[test]
    fn the_limit_of_a_group_or_of_one_above_it_counts() {
        let group = ("proc/self/cgroup", "0::/user/job\n");
        let own = [
            ("sys/fs/cgroup/user/job/memory.max", "5000000\n"),
            ("sys/fs/cgroup/user/job/memory.current", "2000000\n"),
            ("sys/fs/cgroup/user/job/memory.stat", "anon 1\ninactive_file 500000\n"),
        ];
        assert_eq!(available(&[&[group], &own[..]].concat()), Some(3_500_000));
        let above = [
            ("sys/fs/cgroup/user/memory.max", "2500000"),
            ("sys/fs/cgroup/user/memory.current", "2000000"),
        ];
        assert_eq!(available(&[&[group], &own[..], &above].concat()), Some(500_000));
        let full = [
            ("sys/fs/cgroup/user/memory.max", "1"),
            ("sys/fs/cgroup/user/memory.current", "2000000"),
        ];
        assert_eq!(available(&[&[group], &own[..], &full].concat()), Some(0));
    }

    #[test]
    fn version_1_counts_also_where_the_path_is_the_hosts() {
        let group =
            ("proc/self/cgroup", "5:cpuset,memory:/docker/abc\n1:name=systemd:/docker/abc\n");
        let files = [
            group,
            ("sys/fs/cgroup/memory/memory.limit_in_bytes", "4000000\n"),
            ("sys/fs/cgroup/memory/memory.usage_in_bytes", "1000000\n"),
            ("sys/fs/cgroup/memory/memory.stat", "inactive_file 1\ntotal_inactive_file 200000\n"),
        ];
        assert_eq!(available(&files), Some(3_200_000));
        // Without a limit the file has a number that no machine reaches.
        let mut unlimited = files;
        unlimited[1].1 = "9223372036854771712\n";
        assert_eq!(available(&unlimited), Some(8_192_000));
    }

    #[cfg(target_os = "linux")]
    #[test]
    fn this_process_has_some_and_may_take_more() {
        let (now, peak, limit) = (resident_memory(), peak_memory(), memory_limit());
        assert!(now.unwrap() > 1 << 16 && limit > now, "{now:?} {limit:?}");
        // The system counts pages for each processor and adds them up now and then, while other tests take memory and give it back.
        let inexact = 4 << 20;
        assert!(peak.unwrap() + inexact >= now.unwrap(), "{now:?} {peak:?}");
    }
}
