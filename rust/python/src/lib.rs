//! `bss_stream._engine`: the binding of `bss-engine`. It converts between Python and bytes and
//! holds no rule of its own.

use bss_engine::core::{chunk, frame, partition};
use bss_engine::engine::{self, EngineError, Input};
use bss_engine::swap::{reason, topics, vocabulary};
use pyo3::buffer::PyBuffer;
use pyo3::exceptions::PyValueError;
use pyo3::ffi;
use pyo3::prelude::*;
use pyo3::pybacked::{PyBackedBytes, PyBackedStr};
use pyo3::types::{PyBytes, PyList, PyMemoryView};
use std::ffi::c_int;
use std::sync::{Mutex, MutexGuard, PoisonError};

/// A record of a chunk as Python sees it.
type PyRecord<'py> = (Bound<'py, PyBytes>, Option<Bound<'py, PyBytes>>);

fn value_error(error: &EngineError) -> PyErr {
    PyValueError::new_err(error.to_string())
}

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

/// The bytes of a chunk that Python holds.
#[derive(FromPyObject)]
enum PyChunk {
    Bytes(PyBackedBytes),
    /// What else is a view of bytes is copied: nothing says that nobody writes there.
    View(PyBuffer<u8>),
}

/// The records of a chunk, in order.
#[pyfunction]
fn unpack(py: Python<'_>, data: PyChunk) -> PyResult<Bound<'_, PyList>> {
    let copied;
    let data: &[u8] = match &data {
        PyChunk::Bytes(bytes) => bytes,
        PyChunk::View(view) => {
            copied = view.to_vec(py)?;
            &copied
        }
    };
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

/// When the last signal of a chunk was received, in epoch milliseconds; None if it has no frame.
#[pyfunction]
fn last_received_ms(data: &[u8]) -> Option<i64> {
    let (_, value) = chunk::Records::new(data).filter_map(Result::ok).last()?;
    frame::parse_signal(value?).map(|frame| frame.received_ms)
}

/// Compiles a plan model; the message of the error has one line a fault.
#[pyfunction]
fn check_model(file: &str, data: &[u8]) -> PyResult<String> {
    vocabulary::ModelKind::compile(file, data)
        .map(|(_, model)| model.name)
        .map_err(|faults| PyValueError::new_err(faults.join("\n")))
}

/// Every reason: code, message, what can be done, whether it makes a dead letter.
#[pyfunction]
fn reasons() -> Vec<(&'static str, &'static str, Option<&'static str>, bool)> {
    reason::Reason::all()
        .map(|r| (r.code(), r.message(), r.action(), r.is_dead_letter()))
        .collect()
}

/// The topics of the log, by index.
#[pyfunction]
fn topic_names() -> Vec<&'static str> {
    (0..topics::COUNT).map(topics::name).collect()
}

/// Records for one partition of one topic.
#[pyclass(frozen, module = "bss_stream._engine")]
struct OutputChunk {
    #[pyo3(get)]
    topic: &'static str,
    #[pyo3(get)]
    shard: u32,
    #[pyo3(get)]
    partition: u32,
    #[pyo3(get)]
    records: usize,
    bytes: Vec<u8>,
}

#[pymethods]
impl OutputChunk {
    /// A view of the chunk's own bytes, which nobody writes to any more.
    #[getter]
    fn data<'py>(slf: &Bound<'py, Self>) -> PyResult<Bound<'py, PyMemoryView>> {
        PyMemoryView::from(slf)
    }

    /// # Safety
    /// As of Python's buffer protocol: `view` is one that is to be filled.
    // The one piece of unsafe code: to copy the bytes into a Python object instead took a tenth of
    // the engine's time (docs/performance.md).
    unsafe fn __getbuffer__(
        slf: &Bound<'_, Self>,
        view: *mut ffi::Py_buffer,
        flags: c_int,
    ) -> PyResult<()> {
        let bytes = &slf.get().bytes;
        let len = ffi::Py_ssize_t::try_from(bytes.len())?;
        let data = bytes.as_ptr().cast_mut().cast();
        // SAFETY: the view holds a reference to the object, the object never changes or moves its
        // bytes, and the view is marked as not to be written to.
        match unsafe { ffi::PyBuffer_FillInfo(view, slf.as_ptr(), data, len, 1, flags) } {
            0 => Ok(()),
            _ => Err(PyErr::fetch(slf.py())),
        }
    }
}

/// What one call to `Engine.process` gives.
#[pyclass(frozen, module = "bss_stream._engine")]
struct Output {
    #[pyo3(get)]
    chunks: Vec<Py<OutputChunk>>,
    #[pyo3(get)]
    outcomes: std::collections::HashMap<&'static str, u64>,
}

/// One partition's records as Python hands them over.
type PyInput = (PyBackedStr, u32, Vec<i64>, PyBackedBytes);

/// The engine.
#[pyclass(frozen, module = "bss_stream._engine")]
struct Engine {
    // Python threads may share the object; one call at a time runs in the engine.
    inner: Mutex<engine::Engine>,
}

impl Engine {
    fn inner(&self) -> MutexGuard<'_, engine::Engine> {
        // A panic has been raised in Python already; the caller drops the shards it concerns.
        self.inner.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

#[pymethods]
impl Engine {
    #[new]
    #[pyo3(signature = (setup, *, partitions, threads = 1))]
    fn new(setup: &[u8], partitions: u32, threads: usize) -> PyResult<Self> {
        let inner = engine::Engine::new(setup, partitions, threads).map_err(|e| value_error(&e))?;
        Ok(Self {
            inner: Mutex::new(inner),
        })
    }

    fn open_shard(&self, partition: u32) -> PyResult<()> {
        self.inner()
            .open_shard(partition)
            .map_err(|e| value_error(&e))
    }

    fn drop_shard(&self, partition: u32) {
        self.inner().drop_shard(partition);
    }

    fn restore(
        &self,
        py: Python<'_>,
        partition: u32,
        state_topic: PyBackedStr,
        data: PyBackedBytes,
    ) -> PyResult<usize> {
        py.detach(|| self.inner().restore(partition, &state_topic, &data))
            .map_err(|e| value_error(&e))
    }

    fn applied_offset(&self, partition: u32, topic: &str) -> PyResult<Option<i64>> {
        self.inner()
            .applied(partition, topic)
            .map_err(|e| value_error(&e))
    }

    fn next_due_ms(&self, partition: u32) -> PyResult<Option<i64>> {
        self.inner()
            .next_due_ms(partition)
            .map_err(|e| value_error(&e))
    }

    fn entities(&self, partition: u32) -> PyResult<[usize; 3]> {
        self.inner()
            .entities(partition)
            .map_err(|e| value_error(&e))
    }

    fn reload(&self, py: Python<'_>, setup: PyBackedBytes) -> PyResult<()> {
        py.detach(|| self.inner().reload(&setup))
            .map_err(|e| value_error(&e))
    }

    #[pyo3(signature = (inputs, now_ms, *, tick = Vec::new()))]
    fn process(
        &self,
        py: Python<'_>,
        inputs: Vec<PyInput>,
        now_ms: i64,
        tick: Vec<u32>,
    ) -> PyResult<Output> {
        let output = py
            .detach(|| {
                let inputs: Vec<Input<'_>> = inputs
                    .iter()
                    .map(|(topic, partition, offsets, data)| Input {
                        topic,
                        partition: *partition,
                        offsets,
                        data,
                    })
                    .collect();
                self.inner().process(&inputs, &tick, now_ms)
            })
            .map_err(|e| value_error(&e))?;
        let chunks = output
            .chunks
            .into_iter()
            .map(|chunk| {
                let engine::OutputChunk {
                    topic,
                    shard,
                    partition,
                    records,
                    data: bytes,
                } = chunk;
                Py::new(
                    py,
                    OutputChunk {
                        topic,
                        shard,
                        partition,
                        records,
                        bytes,
                    },
                )
            })
            .collect::<PyResult<_>>()?;
        Ok(Output {
            chunks,
            outcomes: output.outcomes.into_iter().collect(),
        })
    }

    fn describe_state<'py>(
        &self,
        py: Python<'py>,
        state_topic: &str,
        key: &[u8],
        value: &[u8],
    ) -> PyResult<Bound<'py, PyBytes>> {
        let id = String::from_utf8_lossy(key);
        let text = self
            .inner()
            .describe(state_topic, &id, value)
            .map_err(|e| value_error(&e))?;
        Ok(PyBytes::new(py, text.as_bytes()))
    }
}

#[pymodule]
fn _engine(m: &Bound<'_, PyModule>) -> PyResult<()> {
    m.add_function(wrap_pyfunction!(pack, m)?)?;
    m.add_function(wrap_pyfunction!(unpack, m)?)?;
    m.add_function(wrap_pyfunction!(partition_for, m)?)?;
    m.add_function(wrap_pyfunction!(last_received_ms, m)?)?;
    m.add_function(wrap_pyfunction!(check_model, m)?)?;
    m.add_function(wrap_pyfunction!(reasons, m)?)?;
    m.add_function(wrap_pyfunction!(topic_names, m)?)?;
    m.add_class::<Engine>()?;
    m.add_class::<Output>()?;
    m.add_class::<OutputChunk>()?;
    Ok(())
}
