//! Matrix products by cuBLASLt: the peer that our kernels are measured against, on the driver's stream.

use super::driver::LibraryProduct;
use super::probe::cublaslt_version;
use crate::error::{Error, Result};
use crate::tensor::DType;
use cudarc::cublaslt::result::{self, CublasError};
use cudarc::cublaslt::sys;
use cudarc::driver::{result as driver, sys as driver_sys};
use std::ffi::c_void;

/// Scratch memory that the library may use, bytes: what NVIDIA recommends for Hopper, the most of all.
const WORKSPACE: usize = 32 << 20;
/// The library's kernels care for no alignment beyond this, bytes.
const MOST_ALIGNED: u32 = 256;

/// A matrix as the library sees it, by columns.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct ColumnMajor {
    rows: u64,
    cols: u64,
    /// Elements from one column to the next.
    stride: u64,
    /// Whether the product takes it transposed.
    transposed: bool,
}

/// The library's first and second factor (our `b`, then our `a`) and its result. A matrix stored by rows is its own
/// transpose stored by columns, so the library is asked for `y^T = op(b)^T op(a)^T`.
fn column_major(p: &LibraryProduct) -> [ColumnMajor; 3] {
    let [m, n, k] = [p.m, p.n, p.k].map(u64::from);
    let by_columns = |rows, cols, transposed| ColumnMajor { rows, cols, stride: rows, transposed };
    let first = if p.b_trans { by_columns(n, k, false) } else { by_columns(k, n, true) };
    let second = if p.a_trans { by_columns(m, k, true) } else { by_columns(k, m, false) };
    [first, second, by_columns(n, m, false)]
}

/// Something of the library's, given back when it is dropped.
struct Owned<T: Copy> {
    raw: T,
    destroy: unsafe fn(T) -> std::result::Result<(), CublasError>,
}

impl<T: Copy> Drop for Owned<T> {
    fn drop(&mut self) {
        // An error cannot be acted on: what was asked for is gone either way.
        // SAFETY: the library made it, and this is the one place that destroys it.
        let _ = unsafe { (self.destroy)(self.raw) };
    }
}

/// A product that is ready to run.
struct Prepared {
    product: LibraryProduct,
    operation: Owned<sys::cublasLtMatmulDesc_t>,
    layouts: [Owned<sys::cublasLtMatrixLayout_t>; 3],
    algorithm: sys::cublasLtMatmulAlgo_t,
}

/// The library on one GPU. The GPU's context must be current whenever it is made, used and dropped.
pub struct CublasLt {
    prepared: Vec<Prepared>,
    handle: Owned<sys::cublasLtHandle_t>,
    /// Address of [`WORKSPACE`] bytes.
    workspace: driver_sys::CUdeviceptr,
    version: (i32, i32),
}

fn failed(what: &str, e: CublasError) -> Error {
    Error::device("cuda", format!("cuBLASLt {what}: {e}"))
}

/// What the library calls an element type.
fn data_type(dtype: DType) -> Option<sys::cudaDataType> {
    match dtype {
        DType::Bf16 => Some(sys::cudaDataType_t::CUDA_R_16BF),
        DType::F32 => Some(sys::cudaDataType_t::CUDA_R_32F),
        _ => None,
    }
}

/// The largest power of two up to [`MOST_ALIGNED`] that divides `address`.
fn alignment(address: u64) -> u32 {
    1 << address.trailing_zeros().min(MOST_ALIGNED.trailing_zeros())
}

impl CublasLt {
    /// Opens the library and takes its scratch memory.
    ///
    /// # Errors
    /// The library is missing (the message says what to install) or does not start, or the memory is not there.
    pub fn new() -> Result<Self> {
        let version = cublaslt_version().map_err(|why| Error::device("cuda", why))?;
        let raw = result::create_handle().map_err(|e| failed("does not start", e))?;
        let handle = Owned { raw, destroy: result::destroy_handle };
        // SAFETY: freed once, in `drop`; the library writes before it reads.
        let workspace = unsafe { driver::malloc_sync(WORKSPACE) }
            .map_err(|e| Error::device("cuda", format!("no {WORKSPACE} bytes for cuBLASLt ({e:?})")))?;
        Ok(CublasLt { prepared: Vec::new(), handle, workspace, version })
    }

    /// Major and minor version.
    pub fn version(&self) -> (i32, i32) {
        self.version
    }

    /// Prepares a product; None when the library has no kernel for it.
    ///
    /// # Errors
    /// Those of the library, other than that it does not offer the product.
    pub fn prepare(&mut self, product: &LibraryProduct) -> Result<Option<usize>> {
        if let Some(known) = self.prepared.iter().position(|p| p.product == *product) {
            return Ok(Some(known));
        }
        let (Some(element), Some(stored)) = (data_type(product.element), data_type(product.stored)) else {
            return Ok(None);
        };
        match self.describe(product, element, stored) {
            Ok(prepared) => {
                self.prepared.push(prepared);
                Ok(Some(self.prepared.len() - 1))
            }
            Err(CublasError(
                sys::cublasStatus_t::CUBLAS_STATUS_NOT_SUPPORTED
                | sys::cublasStatus_t::CUBLAS_STATUS_INVALID_VALUE,
            )) => Ok(None),
            Err(e) => Err(failed("does not prepare a product", e)),
        }
    }

    fn describe(
        &self,
        product: &LibraryProduct,
        element: sys::cudaDataType,
        stored: sys::cudaDataType,
    ) -> std::result::Result<Prepared, CublasError> {
        let seen = column_major(product);
        let operation = operation(product, &seen)?;
        let layouts = [layout(&seen[0], element)?, layout(&seen[1], element)?, layout(&seen[2], stored)?];
        let preference = preference(product)?;
        let [first, second, out] = [0, 1, 2].map(|i: usize| layouts[i].raw);
        // SAFETY: all of them are live; the result is as `out`, which takes the place of the summand that is not read.
        let found = unsafe {
            result::get_matmul_algo_heuristic(
                self.handle.raw,
                operation.raw,
                first,
                second,
                out,
                out,
                preference.raw,
            )
        }?;
        Ok(Prepared { product: *product, operation, layouts, algorithm: found.algo })
    }

    /// Puts a prepared product on `stream`, which must be of the current context.
    ///
    /// # Errors
    /// `index` was never given out, or the product does not start.
    pub fn enqueue(&self, index: usize, stream: driver_sys::CUstream) -> Result<()> {
        let Some(Prepared { product, operation, layouts, algorithm }) = self.prepared.get(index) else {
            return Err(Error::device("cuda", format!("product {index} was never prepared")));
        };
        let (one, zero) = (1.0f32, 0.0f32);
        let scalar = |v: &f32| (v as *const f32).cast::<c_void>();
        let [first, second, out] = [0, 1, 2].map(|i: usize| layouts[i].raw);
        // SAFETY: descriptors, workspace and stream are live; the factors are read before the call returns; the operands lie
        // in live allocations of the sizes that the layouts tell, as the caller of `prepare` promised. Launches on one
        // stream run in order, so they may share the workspace. With a second factor of 0 the summand is not read.
        let status = unsafe {
            result::matmul(
                self.handle.raw,
                operation.raw,
                scalar(&one),
                scalar(&zero),
                product.b as *const c_void,
                first,
                product.a as *const c_void,
                second,
                product.y as *const c_void,
                out,
                product.y as *mut c_void,
                out,
                algorithm,
                self.workspace as *mut c_void,
                WORKSPACE,
                stream.cast(),
            )
        };
        status.map_err(|e| failed("does not start a product", e))
    }
}

fn layout(
    m: &ColumnMajor,
    dtype: sys::cudaDataType,
) -> std::result::Result<Owned<sys::cublasLtMatrixLayout_t>, CublasError> {
    let raw = result::create_matrix_layout(dtype, m.rows, m.cols, m.stride as i64)?;
    Ok(Owned { raw, destroy: result::destroy_matrix_layout })
}

/// Sums in f32 (for f32 factors without TF32), the factors transposed as they are seen, and the bias.
fn operation(
    product: &LibraryProduct,
    seen: &[ColumnMajor; 3],
) -> std::result::Result<Owned<sys::cublasLtMatmulDesc_t>, CublasError> {
    use sys::cublasLtMatmulDescAttributes_t as A;
    let single = sys::cudaDataType_t::CUDA_R_32F;
    let raw = result::create_matmul_desc(sys::cublasComputeType_t::CUBLAS_COMPUTE_32F, single)?;
    let operation = Owned { raw, destroy: result::destroy_matmul_desc };
    let set = |attribute, value: &[u8]| {
        // SAFETY: the descriptor is live; the library copies as many bytes as there are.
        unsafe { result::set_matmul_desc_attribute(raw, attribute, value.as_ptr().cast(), value.len()) }
    };
    // cublasOperation_t: 0 as it is, 1 transposed.
    set(A::CUBLASLT_MATMUL_DESC_TRANSA, &i32::from(seen[0].transposed).to_ne_bytes())?;
    set(A::CUBLASLT_MATMUL_DESC_TRANSB, &i32::from(seen[1].transposed).to_ne_bytes())?;
    if product.bias != 0 {
        let epilogue = sys::cublasLtEpilogue_t::CUBLASLT_EPILOGUE_BIAS as u32;
        set(A::CUBLASLT_MATMUL_DESC_EPILOGUE, &epilogue.to_ne_bytes())?;
        set(A::CUBLASLT_MATMUL_DESC_BIAS_POINTER, &product.bias.to_ne_bytes())?;
        set(A::CUBLASLT_MATMUL_DESC_BIAS_DATA_TYPE, &(single as i32).to_ne_bytes())?;
    }
    Ok(operation)
}

/// What the choice of a kernel must heed: the scratch memory, and how the operands are aligned.
fn preference(
    product: &LibraryProduct,
) -> std::result::Result<Owned<sys::cublasLtMatmulPreference_t>, CublasError> {
    use sys::cublasLtMatmulPreferenceAttributes_t as A;
    let raw = result::create_matmul_pref()?;
    let preference = Owned { raw, destroy: result::destroy_matmul_pref };
    let set = |attribute, value: &[u8]| {
        // SAFETY: the preference is live; the library copies as many bytes as there are.
        unsafe { result::set_matmul_pref_attribute(raw, attribute, value.as_ptr().cast(), value.len()) }
    };
    set(A::CUBLASLT_MATMUL_PREF_MAX_WORKSPACE_BYTES, &(WORKSPACE as u64).to_ne_bytes())?;
    for (attribute, address) in [
        (A::CUBLASLT_MATMUL_PREF_MIN_ALIGNMENT_A_BYTES, product.b),
        (A::CUBLASLT_MATMUL_PREF_MIN_ALIGNMENT_B_BYTES, product.a),
        (A::CUBLASLT_MATMUL_PREF_MIN_ALIGNMENT_C_BYTES, product.y),
        (A::CUBLASLT_MATMUL_PREF_MIN_ALIGNMENT_D_BYTES, product.y),
    ] {
        set(attribute, &alignment(address).to_ne_bytes())?;
    }
    Ok(preference)
}

impl Drop for CublasLt {
    fn drop(&mut self) {
        // SAFETY: allocated in `new`, freed once; the stream was waited for. Descriptors and handle follow by themselves.
        let _ = unsafe { driver::free_sync(self.workspace) };
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// `out = op(first) op(second)` as BLAS defines it, all matrices by columns.
    fn column_major_gemm(seen: &[ColumnMajor; 3], first: &[f32], second: &[f32]) -> Vec<f32> {
        let [a, b, out] = seen;
        let at = |m: &ColumnMajor, x: &[f32], i: u64, j: u64| {
            let (row, col) = if m.transposed { (j, i) } else { (i, j) };
            assert!(row < m.rows && col < m.cols, "{row}, {col} of {m:?}");
            x[(col * m.stride + row) as usize]
        };
        let depth = if a.transposed { a.rows } else { a.cols };
        assert_eq!(depth, if b.transposed { b.cols } else { b.rows }, "factors that do not fit");
        let mut y = vec![f32::NAN; (out.stride * out.cols) as usize];
        for j in 0..out.cols {
            for i in 0..out.rows {
                let sum = (0..depth).map(|r| at(a, first, i, r) * at(b, second, r, j)).sum();
                y[(j * out.stride + i) as usize] = sum;
            }
        }
        y
    }

    #[test]
    fn products_by_rows_are_the_librarys_by_columns() {
        let (m, n, k) = (5u32, 3u32, 4u32);
        let a: Vec<f32> = (0..m * k).map(|i| (i * 7 % 11) as f32).collect();
        let b: Vec<f32> = (0..n * k).map(|i| (i * 5 % 13) as f32 - 4.0).collect();
        for (a_trans, b_trans) in [(false, false), (false, true), (true, false), (true, true)] {
            let product = LibraryProduct { m, n, k, a_trans, b_trans, ..LibraryProduct::default() };
            let got = column_major_gemm(&column_major(&product), &b, &a);
            let left = |i: u32, r: u32| a[if a_trans { r * m + i } else { i * k + r } as usize];
            let right = |j: u32, r: u32| b[if b_trans { r * n + j } else { j * k + r } as usize];
            let want: Vec<f32> =
                (0..m * n).map(|x| (0..k).map(|r| left(x / n, r) * right(x % n, r)).sum()).collect();
            assert_eq!(got, want, "{a_trans} {b_trans}");
        }
    }

    #[test]
    fn alignments_are_powers_of_two_up_to_the_most_that_matters() {
        let of = [0, 2, 48, 128, 256, 1 << 40, (1 << 40) + 16].map(alignment);
        assert_eq!(of, [256, 2, 16, 128, 256, 256, 16]);
    }

    /// Descriptors need no GPU: where the library is installed it must take every attribute that is set.
    #[test]
    fn the_library_takes_what_it_is_told_or_is_named_as_missing() {
        let product = LibraryProduct { m: 5, n: 3, k: 4, bias: 256, a: 16, ..LibraryProduct::default() };
        match cublaslt_version() {
            Ok((major, _)) => {
                assert!(major >= 12, "{major}");
                let seen = column_major(&product);
                operation(&product, &seen).map(drop).unwrap();
                preference(&product).map(drop).unwrap();
                layout(&seen[0], sys::cudaDataType_t::CUDA_R_16BF).map(drop).unwrap();
            }
            Err(why) => {
                assert!(why.contains("libcublasLt.so.13") && why.contains("nvidia-cublas"), "{why}");
                let message = CublasLt::new().err().map(|e| e.to_string()).unwrap_or_default();
                assert!(message.contains(&why), "{message}");
            }
        }
    }
}
