fn main() {
    let t = std::time::Instant::now();
    let d = kd_data::synthetic(&kd_data::SyntheticConfig { train: 8000, test: 2000, seed: 0 });
    eprintln!("{:?} {}", t.elapsed(), d.sha256);
    let o = std::env::args().nth(1).unwrap();
    for (n, s) in [("train", &d.train), ("test", &d.test)] {
        std::fs::write(format!("{o}/{n}.img"), &s.images).unwrap();
        std::fs::write(format!("{o}/{n}.lab"), &s.labels).unwrap();
    }
}
