//! Numbers as people read them.

use crate::statistics;

/// "seed 3", or "seeds 0, 1, 2".
pub fn seeds(seeds: &[u64]) -> String {
    let list: Vec<String> = seeds.iter().map(u64::to_string).collect();
    let noun = if seeds.len() == 1 { "seed" } else { "seeds" };
    format!("{noun} {}", list.join(", "))
}

/// Shares as "70.12" or "70.12 ± 0.31" per cent.
pub fn percent_spread(shares: &[f64]) -> String {
    let percent: Vec<f64> = shares.iter().map(|share| share * 100.0).collect();
    let mean = statistics::mean(&percent).unwrap_or(f64::NAN);
    match statistics::standard_deviation(&percent) {
        Some(sd) => format!("{mean:.2} ± {sd:.2}"),
        None => format!("{mean:.2}"),
    }
}

/// Differences of shares as "+0.52" or "+0.52 ± 0.31" percentage points, with a true minus sign.
pub fn points_spread(differences: &[f64]) -> String {
    let points: Vec<f64> = differences.iter().map(|share| share * 100.0).collect();
    let mean = signed(statistics::mean(&points).unwrap_or(f64::NAN), 2);
    match statistics::standard_deviation(&points) {
        Some(sd) => format!("{mean} ± {sd:.2}"),
        None => mean,
    }
}

/// With its sign, a true minus; no sign on what rounds to zero.
pub fn signed(value: f64, decimals: usize) -> String {
    let text = format!("{value:+.decimals$}");
    if text.bytes().all(|byte| b"+-.0".contains(&byte)) {
        return text[1..].to_owned();
    }
    text.replace('-', "−")
}

/// 1186986 -> "1,186,986".
pub fn grouped(number: u64) -> String {
    let digits = number.to_string();
    let mut text = String::new();
    for (index, digit) in digits.chars().enumerate() {
        if index > 0 && (digits.len() - index).is_multiple_of(3) {
            text.push(',');
        }
        text.push(digit);
    }
    text
}

/// A length of time in seconds as "4.2 s", "38 s", "13 min 20 s" or "2 h 5 min".
pub fn duration(seconds: f64) -> String {
    let whole = seconds.round() as u64;
    match whole {
        0..10 => format!("{seconds:.1} s"),
        10..60 => format!("{whole} s"),
        60..3600 => format!("{} min {} s", whole / 60, whole % 60),
        _ => format!("{} h {} min", whole / 3600, whole % 3600 / 60),
    }
}

/// 38_600_000 -> "38.6 M".
pub fn millions(number: u64) -> String {
    match number {
        0..10_000 => grouped(number),
        10_000..1_000_000 => format!("{:.0} k", number as f64 / 1e3),
        1_000_000..1_000_000_000 => format!("{:.1} M", number as f64 / 1e6),
        _ => format!("{:.2} G", number as f64 / 1e9),
    }
}

/// 267738 -> "267.7 kB".
pub fn bytes(number: u64) -> String {
    match number {
        0..1_000_000 => format!("{:.1} kB", number as f64 / 1e3),
        _ => format!("{:.2} MB", number as f64 / 1e6),
    }
}

/// Memory as systems count it: "102 MiB", "1.50 GiB".
pub fn memory(bytes: u64) -> String {
    match bytes {
        0..0x10_0000 => format!("{} KiB", bytes.div_ceil(1 << 10)),
        0x10_0000..0x4000_0000 => format!("{:.0} MiB", bytes as f64 / f64::from(1 << 20)),
        _ => format!("{:.2} GiB", bytes as f64 / f64::from(1 << 30)),
    }
}

/// Images per second: whole above ten.
pub fn rate(per_second: f64) -> String {
    if per_second < 10.0 { format!("{per_second:.1}") } else { grouped(per_second.round() as u64) }
}

/// A share as per cent with two decimals, without the sign: "70.12".
pub fn percent(share: f64) -> String {
    format!("{:.2}", share * 100.0)
}

/// A data set's name as people write it.
pub fn dataset_title(name: &str) -> &str {
    match name {
        "cifar10" => "CIFAR-10",
        "cifar100" => "CIFAR-100",
        "synthetic" => "Synthetic pictures",
        "folder" | "shards" => "Pictures of one's own",
        other => other,
    }
}
