//! `bss_stream._engine`: the binding of `bss-engine`. It converts between Python and bytes and
//! holds no rule of its own.

use bss_engine::core::cloudevents::Attributes;
use bss_engine::core::{chunk, frame, partition, record_batch};
use bss_engine::engine::{self, EngineError, Input};
use bss_engine::swap::event::Event;
use bss_engine::swap::{coverage, reason, router, topics, vocabulary};
use pyo3::buffer::PyBuffer;
use pyo3::exceptions::PyValueError;
use pyo3::ffi;
use pyo3::prelude::*;
use pyo3::pybacked::{PyBackedBytes, PyBackedStr};
use pyo3::types::{PyBytes, PyList, PyMemoryView};
use std::borrow::Cow;
use std::collections::HashMap;
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
enum PyChunk {
    Bytes(PyBackedBytes),
    /// A view of a whole chunk of the engine's, which nobody writes to.
    Own(Py<OutputChunk>),
    /// What else is a view of bytes is copied: nothing says that nobody writes there.
    Copy(Vec<u8>),
}

impl PyChunk {
    fn of(data: &Bound<'_, PyAny>) -> PyResult<Self> {
        if let Ok(bytes) = data.extract() {
            return Ok(Self::Bytes(bytes));
        }
        let view = PyBuffer::<u8>::get(data)?;
        if data.is_exact_instance_of::<PyMemoryView>()
            && let Ok(chunk) = data.getattr("obj")?.cast_into_exact::<OutputChunk>()
            && view.is_c_contiguous()
            && view.len_bytes() == chunk.get().bytes.len()
        {
            return Ok(Self::Own(chunk.unbind()));
        }
        view.to_vec(data.py()).map(Self::Copy)
    }

    fn bytes(&self) -> &[u8] {
        match self {
            Self::Bytes(bytes) => bytes,
            Self::Own(chunk) => &chunk.get().bytes,
            Self::Copy(bytes) => bytes,
        }
    }
}

/// The records of a chunk, in order.
#[pyfunction]
fn unpack<'py>(data: &Bound<'py, PyAny>) -> PyResult<Bound<'py, PyList>> {
    let py = data.py();
    let chunk = PyChunk::of(data)?;
    let list = PyList::empty(py);
    for record in chunk::Records::new(chunk.bytes()) {
        let (key, value) = record.map_err(|e| PyValueError::new_err(e.to_string()))?;
        list.append((PyBytes::new(py, key), value.map(|v| PyBytes::new(py, v))))?;
    }
    Ok(list)
}

/// How many records a chunk has, and how many bytes the key and value of the largest.
#[pyfunction]
fn measure(data: &Bound<'_, PyAny>) -> PyResult<(usize, usize)> {
    let chunk = PyChunk::of(data)?;
    let (mut records, mut largest) = (0, 0);
    for record in chunk::Records::new(chunk.bytes()) {
        let (key, value) = record.map_err(|e| PyValueError::new_err(e.to_string()))?;
        records += 1;
        largest = largest.max(key.len() + value.map_or(0, <[u8]>::len));
    }
    Ok((records, largest))
}

/// Where the records behind a chunk's first ones begin.
#[pyfunction]
fn byte_after(data: &Bound<'_, PyAny>, records: usize) -> PyResult<usize> {
    let chunk = PyChunk::of(data)?;
    chunk::byte_after(chunk.bytes(), records).map_err(|e| PyValueError::new_err(e.to_string()))
}

/// A chunk's records as Kafka record batches: how many records each has, and its bytes.
#[pyfunction]
#[pyo3(signature = (
    data, *, producer, base_sequence, transactional, timestamp_ms, bytes_max, events = None
))]
#[expect(clippy::too_many_arguments, reason = "keywords in Python")]
fn write_batches<'py>(
    py: Python<'py>,
    data: &Bound<'py, PyAny>,
    producer: (i64, i16),
    base_sequence: i32,
    transactional: bool,
    timestamp_ms: i64,
    bytes_max: usize,
    events: Option<(String, String)>,
) -> PyResult<Vec<(u32, Bound<'py, PyBytes>)>> {
    let writer = record_batch::Writer {
        producer_id: producer.0,
        producer_epoch: producer.1,
        base_sequence,
        transactional,
        timestamp_ms,
    };
    let chunk = PyChunk::of(data)?;
    let batches = py
        .detach(|| {
            let events = events
                .as_ref()
                .map(|(source, kind)| Attributes { source, kind });
            record_batch::write(chunk.bytes(), writer, events, bytes_max)
        })
        .map_err(|e| PyValueError::new_err(e.to_string()))?;
    Ok(batches
        .into_iter()
        .map(|batch| (batch.records, PyBytes::new(py, &batch.data)))
        .collect())
}

/// The sequence number behind so many records.
#[pyfunction]
fn sequence_after(base_sequence: i32, records: u32) -> i32 {
    record_batch::sequence_after(base_sequence, records)
}

/// The committed records in a response: their offsets, their chunk, where reading goes on.
#[pyfunction]
fn read_batches<'py>(
    py: Python<'py>,
    data: PyBackedBytes,
    aborted: Vec<record_batch::Aborted>,
    from_offset: i64,
) -> PyResult<(Vec<i64>, Bound<'py, PyBytes>, i64)> {
    let found = py
        .detach(|| record_batch::read(&data, &aborted, from_offset))
        .map_err(|e| PyValueError::new_err(e.to_string()))?;
    Ok((
        found.offsets,
        PyBytes::new(py, &found.data),
        found.next_offset,
    ))
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

/// When the first signal of a chunk was received, in epoch milliseconds; None if it has no frame.
#[pyfunction]
fn first_received_ms(data: &[u8]) -> Option<i64> {
    let (_, value) = chunk::Records::new(data).find_map(Result::ok)?;
    frame::parse_signal(value?).map(|frame| frame.received_ms)
}

/// The signals of a chunk that have a trace: place, event, correlation id, trace.
#[pyfunction]
fn traced(data: &[u8]) -> Vec<(usize, &str, String, &str)> {
    let records = chunk::Records::new(data).map_while(Result::ok).enumerate();
    records
        .filter_map(|(at, (_, value))| {
            let frame = frame::parse_signal(value.filter(|value| value.starts_with(b"2"))?)?;
            let id = router::field_of(frame.payload, "correlation_id");
            let id = id.map_or_else(|| frame.correlation.into(), Cow::into_owned);
            Some((at, frame.event, id, frame.trace))
        })
        .collect()
}

/// A text if it is a `traceparent`, else an empty one.
#[pyfunction]
fn clean_trace(trace: &str) -> &str {
    router::clean_trace(trace)
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

/// Every event that entities take: the kind of entity, the event's name.
#[pyfunction]
fn events() -> Vec<(&'static str, &'static str)> {
    Event::all()
        .map(|event| (event.kind().name(), event.name()))
        .collect()
}

/// Every reason's code and the signal by which clients know it.
#[pyfunction]
fn reason_signals() -> Vec<(&'static str, &'static str)> {
    reason::Reason::all()
        .map(|r| (r.code(), r.signal()))
        .collect()
}

/// Where the answers to events go: the event, the topic with its entity's id in braces.
#[pyfunction]
fn echo_topics() -> Vec<(&'static str, String)> {
    Event::all()
        .flat_map(|event| event.echo_topics().iter().map(move |topic| (event, topic)))
        .map(|(event, (prefix, suffix))| {
            let id = event.kind().id_field();
            (event.name(), format!("{prefix}{{{id}}}{suffix}"))
        })
        .collect()
}

/// What a plan's machines are called, and the fundamental signals that they see.
#[pyfunction]
fn fundamental_signals() -> (Vec<&'static str>, Vec<&'static str>) {
    (
        vocabulary::PLAN.cycles.to_vec(),
        vocabulary::PLAN.signals.to_vec(),
    )
}

/// The topics of the log, by index.
#[pyfunction]
fn topic_names() -> Vec<&'static str> {
    (0..topics::COUNT).map(topics::name).collect()
}

/// A row of the topic table: filter, event, entity, and the name of the topic's segment or of the
/// payload's field that has the key.
type PyRow = (String, String, String, Option<String>, Option<String>);

/// Place of the row, event, topic of the log, and the key if it is there.
type PyRouted = (usize, String, &'static str, Option<String>);

/// Topic, payload, correlation data, trace.
type PyMessage = (
    PyBackedStr,
    PyBackedBytes,
    Option<PyBackedBytes>,
    Option<PyBackedStr>,
);

/// Topic, partition, records, packed records.
type PyLane<'py> = (&'static str, u32, usize, Bound<'py, PyBytes>);

/// Position among the messages, reason, and the key that was refused.
type PyUnroutable = (usize, &'static str, Option<String>);

/// The compiled topic table.
#[pyclass(frozen, module = "bss_stream._engine")]
struct Router {
    inner: router::Router,
}

fn router_row((filter, event, entity, segment, field): PyRow) -> PyResult<router::Row> {
    let kind = topics::EntityKind::named(&entity).ok_or_else(|| {
        PyValueError::new_err(format!("entity {entity}: expected plan, station or asset"))
    })?;
    let key = match (segment, field) {
        (Some(name), None) => router::KeyPlace::Segment(name),
        (None, Some(name)) => router::KeyPlace::Field(name),
        _ => {
            let fault = format!("filter {filter}: expected its key in the topic or in the payload");
            return Err(PyValueError::new_err(fault));
        }
    };
    Ok(router::Row {
        filter,
        event,
        kind,
        key,
    })
}

#[pymethods]
impl Router {
    #[new]
    fn new(rows: Vec<PyRow>) -> PyResult<Self> {
        let rows = rows
            .into_iter()
            .map(router_row)
            .collect::<PyResult<Vec<_>>>()?;
        let inner = router::Router::new(&rows).map_err(|e| PyValueError::new_err(e.to_string()))?;
        Ok(Self { inner })
    }

    fn route(&self, topic: &str, payload: &[u8]) -> Option<PyRouted> {
        self.inner.route(topic, payload).map(|routed| {
            let key = routed.key.map(std::borrow::Cow::into_owned);
            let event = routed.event.to_owned();
            (routed.row, event, routed.kind.signals_name(), key)
        })
    }

    fn pack<'py>(
        &self,
        py: Python<'py>,
        messages: Vec<PyMessage>,
        partitions: u32,
        received_ms: i64,
        payload_bytes_max: usize,
    ) -> PyResult<(Vec<PyLane<'py>>, Vec<PyUnroutable>)> {
        if partitions == 0 {
            return Err(PyValueError::new_err(
                "partitions is 0: it must be at least 1",
            ));
        }
        let given = messages
            .iter()
            .map(|(topic, payload, correlation, trace)| router::Message {
                topic,
                payload,
                correlation: correlation.as_deref().unwrap_or_default(),
                trace: trace.as_deref().unwrap_or_default(),
            });
        let (lanes, unroutable) =
            self.inner
                .pack(given, partitions, received_ms, payload_bytes_max);
        let lanes = lanes
            .into_iter()
            .map(|lane| {
                let data = PyBytes::new(py, &lane.data);
                (lane.kind.signals_name(), lane.partition, lane.records, data)
            })
            .collect();
        let unroutable = unroutable
            .into_iter()
            .map(|(at, why)| match why {
                router::Unroutable::UnknownTopic => (at, "unknown_topic", None),
                router::Unroutable::PayloadTooLarge => (at, "payload_too_large", None),
                router::Unroutable::BadKey(key) => (at, "bad_key", key),
            })
            .collect();
        Ok((lanes, unroutable))
    }
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
    outcomes: HashMap<&'static str, u64>,
    #[pyo3(get)]
    dead_letters: HashMap<&'static str, u64>,
    #[pyo3(get)]
    stock_signals: HashMap<&'static str, u64>,
    #[pyo3(get)]
    timers_fired: u64,
}

/// What a shard holds now.
#[pyclass(frozen, get_all, module = "bss_stream._engine")]
struct Census {
    /// Plans, stations and assets.
    entities: [usize; 3],
    timers_armed: usize,
    holds_open: usize,
    allocations_open: usize,
    /// Station, fleet, batteries in stock, and how many of them are promised.
    stock: Vec<(String, String, i64, i64)>,
}

/// What a shard has come through, each with how often.
#[pyclass(frozen, get_all, module = "bss_stream._engine")]
struct Coverage {
    /// Model, cycle, state, signal, next state.
    transitions: Vec<(String, &'static str, String, &'static str, String, u64)>,
    /// Model, row, external event, cycle.
    compression: Vec<(String, usize, &'static str, &'static str, u64)>,
    /// Event, reason.
    endings: Vec<(Option<&'static str>, &'static str, u64)>,
}

impl Coverage {
    fn new(found: &coverage::Coverage<'_>) -> Self {
        let transitions = found.transitions.iter().map(|one| {
            let (model, from, to) = (one.model.into(), one.from.into(), one.to.into());
            (model, one.cycle, from, one.signal, to, one.count)
        });
        let compression = found.compression.iter().map(|one| {
            let model = one.model.into();
            (model, one.row, one.external, one.cycle, one.count)
        });
        let endings = found.endings.iter().map(|one| {
            let event = one.event.map(Event::name);
            (event, one.reason.code(), one.count)
        });
        Self {
            transitions: transitions.collect(),
            compression: compression.collect(),
            endings: endings.collect(),
        }
    }
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

    fn snapshot<'py>(
        &self,
        py: Python<'py>,
        partition: u32,
        state_topic: PyBackedStr,
        first: usize,
        bytes_max: usize,
    ) -> PyResult<(usize, Bound<'py, PyBytes>, Option<usize>)> {
        let (records, data, next) = py
            .detach(|| {
                self.inner()
                    .snapshot(partition, &state_topic, first, bytes_max)
            })
            .map_err(|e| value_error(&e))?;
        Ok((records, PyBytes::new(py, &data), next))
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

    fn census(&self, partition: u32) -> PyResult<Census> {
        let found = self
            .inner()
            .census(partition)
            .map_err(|e| value_error(&e))?;
        Ok(Census {
            entities: found.entities,
            timers_armed: found.timers_armed,
            holds_open: found.holds_open,
            allocations_open: found.allocations_open,
            stock: found.stock,
        })
    }

    fn coverage(&self, partition: u32) -> PyResult<Coverage> {
        self.inner()
            .coverage(partition)
            .map(|found| Coverage::new(&found))
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
            dead_letters: output.dead_letters.into_iter().collect(),
            stock_signals: output.stock_signals.into_iter().collect(),
            timers_fired: output.timers_fired,
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
    m.add_function(wrap_pyfunction!(measure, m)?)?;
    m.add_function(wrap_pyfunction!(byte_after, m)?)?;
    m.add_function(wrap_pyfunction!(write_batches, m)?)?;
    m.add_function(wrap_pyfunction!(sequence_after, m)?)?;
    m.add_function(wrap_pyfunction!(read_batches, m)?)?;
    m.add_function(wrap_pyfunction!(partition_for, m)?)?;
    m.add_function(wrap_pyfunction!(first_received_ms, m)?)?;
    m.add_function(wrap_pyfunction!(last_received_ms, m)?)?;
    m.add_function(wrap_pyfunction!(traced, m)?)?;
    m.add_function(wrap_pyfunction!(clean_trace, m)?)?;
    m.add_function(wrap_pyfunction!(check_model, m)?)?;
    m.add_function(wrap_pyfunction!(reasons, m)?)?;
    m.add_function(wrap_pyfunction!(topic_names, m)?)?;
    m.add_function(wrap_pyfunction!(events, m)?)?;
    m.add_class::<Census>()?;
    m.add_function(wrap_pyfunction!(reason_signals, m)?)?;
    m.add_function(wrap_pyfunction!(echo_topics, m)?)?;
    m.add_function(wrap_pyfunction!(fundamental_signals, m)?)?;
    m.add_class::<Coverage>()?;
    m.add_class::<Engine>()?;
    m.add_class::<Router>()?;
    m.add_class::<Output>()?;
    m.add_class::<OutputChunk>()?;
    Ok(())
}
