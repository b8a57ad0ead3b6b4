//! Names the shared object as programs ask for the driver, so that a loaded stand-in answers `dlopen`.

fn main() {
    println!("cargo:rerun-if-changed=build.rs");
    // The first name that the bindings try. Had it the driver's own, `libcuda.so.1`, then a machine with a driver and its
    // development link would give them that one.
    println!("cargo:rustc-link-arg-cdylib=-Wl,-soname,libcuda.so");
}
