//! Compiles the CUDA kernels to PTX under the feature `cuda`; without it there is nothing to do.

fn main() {
    println!("cargo::rerun-if-changed=build.rs");
    #[cfg(feature = "cuda")]
    if let Err(message) = compile_kernels() {
        println!("cargo::error={message}");
    }
}

#[cfg(feature = "cuda")]
fn compile_kernels() -> Result<(), Box<dyn std::error::Error>> {
    let source = "src/logits/fused/kernel.cu";
    println!("cargo::rerun-if-changed={source}");
    println!("cargo::rerun-if-env-changed=CUDA_COMPUTE_CAP");
    println!("cargo::rerun-if-env-changed=NVCC");
    println!("cargo::rerun-if-env-changed=NVCC_CCBIN");
    // nvcc and the card's generation are found as candle's own build finds them. PTX for a generation runs on later
    // ones too.
    let nvcc = cudaforge::CudaToolkit::detect()?.nvcc_path;
    let arch = cudaforge::detect_compute_cap()?.base();
    let ptx = std::path::Path::new(&std::env::var("OUT_DIR")?).join("fused.ptx");
    let mut command = std::process::Command::new(&nvcc);
    command.args(["-ptx", "-O3", "-std=c++17"]).arg(format!("-arch=compute_{arch}"));
    if let Some(compiler) = std::env::var_os("NVCC_CCBIN") {
        command.arg("-ccbin").arg(compiler);
    }
    let run = command.arg(source).arg("-o").arg(&ptx).output();
    let run = run.map_err(|error| format!("{}: can't be started: {error}", nvcc.display()))?;
    if !run.status.success() {
        let said = String::from_utf8_lossy(&run.stderr).trim().replace('\n', "; ");
        return Err(format!("{source}: nvcc failed: {said}").into());
    }
    Ok(())
}
