//! `bss_stream._engine`: the binding of `bss-engine`. It converts between Python and bytes and
//! holds no rule of its own.

use bss_engine::core::{chunk, partition};
use pyo3::exceptions::PyValueError;
use pyo3::prelude::*;
use pyo3::types::{PyBytes, PyList};

/// A record of a chunk as Python sees it.
type PyRecord<'py> = (Bound<'py, PyBytes>, Option<Bound<'py, PyBytes>>);

/// Packs keyed records into one chunk.
#[pyfunction]
fn pack<'py>(py: Python<'py>, records: Vec<PyRecord<'py>>) -> Bound<'py, PyBytes> {
    let mut out = Vec::new();
    for (key, value) in &records {
        chunk::push(
            &mut out,
            key.as_bytes(),
            value.as_ref().map(|v| v.as_bytes()),
        );
    }
    PyBytes::new(py, &out)
}

/// The records of a chunk, in order.
#[pyfunction]
fn unpack<'py>(py: Python<'py>, data: &[u8]) -> PyResult<Bound<'py, PyList>> {
    let list = PyList::empty(py);
    for record in chunk::Records::new(data) {
        let (key, value) = record.map_err(|e| PyValueError::new_err(e.to_string()))?;
        list.append((PyBytes::new(py, key), value.map(|v| PyBytes::new(py, v))))?;
    }
    Ok(list)
}

/// The partition of a key, as Kafka's default partitioner places it.
#[pyfunction]
fn partition_for(key: &[u8], partitions: u32) -> PyResult<u32> {
    if partitions == 0 {
        return Err(PyValueError::new_err(
            "partitions is 0: it must be at least 1",
        ));
    }
    Ok(partition::partition_for(key, partitions))
}

#[pymodule]
fn _engine(m: &Bound<'_, PyModule>) -> PyResult<()> {
    m.add_function(wrap_pyfunction!(pack, m)?)?;
    m.add_function(wrap_pyfunction!(unpack, m)?)?;
    m.add_function(wrap_pyfunction!(partition_for, m)?)?;
    Ok(())
}
