//! Compiles the CUDA kernels to PTX; without the feature `cuda` it does nothing.

fn main() {
    println!("cargo::rerun-if-changed=build.rs");
    #[cfg(feature = "cuda")]
    kernels();
}

#[cfg(feature = "cuda")]
fn kernels() {
    println!("cargo::rerun-if-changed=kernels");
    let written = cudaforge::KernelBuilder::new()
        .source_dir("kernels")
        .watch(["kernels/number.cuh", "kernels/reduce.cuh", "kernels/step.cuh"])
        .arg("-std=c++17")
        .arg("-O3")
        .build_ptx()
        .and_then(|ptx| {
            let folder = std::path::PathBuf::from(std::env::var_os("OUT_DIR").unwrap_or_default());
            ptx.write(folder.join("ptx.rs"))
        });
    if let Err(error) = written {
        println!(
            "cargo::error=the CUDA kernels could not be compiled: {error}; the feature cuda needs nvcc on PATH (or NVCC=...) and, without a GPU at hand, CUDA_COMPUTE_CAP, e.g. 90"
        );
    }
}
