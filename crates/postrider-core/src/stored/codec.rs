//! The bytes of stored values: tagged fields, as Protocol Buffers write them on the wire, so that
//! any tool that reads those can show a record.
//!
//! A [`Record`] is a list of fields. A field is a key (its tag and what kind of value follows) and
//! a value. A field that is absent stands for the zero of its type, so a field can be added without
//! touching what is on disk. A field that is not known is an error: the record was written by a
//! newer release, and reading it without that field would change what it says.

use crate::id::*;
use crate::model::DeviceSet;
use bytes::Bytes;
use std::collections::BTreeMap;
use std::sync::Arc;

/// Why bytes are no such record.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Bad {
    #[error("the bytes end too early")]
    Cut,
    #[error("a value has another form than its field")]
    Malformed,
    #[error("field {0} is not known: a newer release wrote it")]
    UnknownField(u32),
    #[error("value {0} is not known: a newer release wrote it")]
    UnknownValue(u64),
    #[error("a field that cannot be absent is absent")]
    Missing,
}

/// A value as it stands behind its key.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Raw<'a> {
    Number(u64),
    Fixed(u64),
    Bytes(&'a [u8]),
}

const NUMBER: u32 = 0;
const FIXED: u32 = 1;
const BYTES: u32 = 2;

impl<'a> Raw<'a> {
    fn number(self) -> Result<u64, Bad> {
        match self {
            Raw::Number(number) => Ok(number),
            _ => Err(Bad::Malformed),
        }
    }

    pub fn bytes(self) -> Result<&'a [u8], Bad> {
        match self {
            Raw::Bytes(bytes) => Ok(bytes),
            _ => Err(Bad::Malformed),
        }
    }
}

/// Reads the fields of a record, one after the other.
#[derive(Clone, Copy, Debug)]
pub struct Fields<'a>(pub &'a [u8]);

impl<'a> Fields<'a> {
    fn number(&mut self) -> Result<u64, Bad> {
        let mut number = 0;
        for (i, byte) in self.0.iter().enumerate().take(10) {
            number |= u64::from(byte & 0x7f) << (7 * i);
            if byte & 0x80 == 0 {
                self.0 = &self.0[i + 1..];
                return Ok(number);
            }
        }
        Err(Bad::Cut)
    }

    fn take(&mut self, len: usize) -> Result<&'a [u8], Bad> {
        let (taken, rest) = self.0.split_at_checked(len).ok_or(Bad::Cut)?;
        self.0 = rest;
        Ok(taken)
    }

    fn field(&mut self) -> Result<(u32, Raw<'a>), Bad> {
        let key = self.number()?;
        let tag = u32::try_from(key >> 3).map_err(|_| Bad::Malformed)?;
        let raw = match (key & 7) as u32 {
            NUMBER => Raw::Number(self.number()?),
            FIXED => {
                let bytes = self.take(8)?.try_into().map_err(|_| Bad::Cut)?;
                Raw::Fixed(u64::from_le_bytes(bytes))
            }
            BYTES => {
                let len = usize::try_from(self.number()?).map_err(|_| Bad::Cut)?;
                Raw::Bytes(self.take(len)?)
            }
            _ => return Err(Bad::Malformed),
        };
        Ok((tag, raw))
    }
}

impl<'a> Iterator for Fields<'a> {
    type Item = Result<(u32, Raw<'a>), Bad>;

    fn next(&mut self) -> Option<Self::Item> {
        if self.0.is_empty() {
            return None;
        }
        let field = self.field();
        if field.is_err() {
            self.0 = &[];
        }
        Some(field)
    }
}

fn put_number(mut number: u64, out: &mut Vec<u8>) {
    while number >= 0x80 {
        out.push(number as u8 | 0x80);
        number >>= 7;
    }
    out.push(number as u8);
}

fn put_key(tag: u32, kind: u32, out: &mut Vec<u8>) {
    put_number(u64::from(tag << 3 | kind), out);
}

pub fn put_bytes(tag: u32, bytes: &[u8], out: &mut Vec<u8>) {
    put_key(tag, BYTES, out);
    put_number(bytes.len() as u64, out);
    out.extend_from_slice(bytes);
}

/// Puts what `fill` appends into a field.
pub fn put_nested(tag: u32, out: &mut Vec<u8>, fill: impl FnOnce(&mut Vec<u8>)) {
    put_key(tag, BYTES, out);
    let at = out.len();
    // Nearly all are shorter than 128 bytes, whose length is one byte.
    out.push(0);
    fill(out);
    let len = out.len() - at - 1;
    if len < 0x80 {
        out[at] = len as u8;
        return;
    }
    let mut prefix = Vec::with_capacity(10);
    put_number(len as u64, &mut prefix);
    out.splice(at..=at, prefix);
}

/// A list of fields.
pub trait Record: Sized {
    fn put(&self, out: &mut Vec<u8>);
    fn get(bytes: &[u8]) -> Result<Self, Bad>;
}

/// What can stand in a field.
pub trait Value: Sized {
    /// Writes key and value, whatever the value is.
    fn put_value(&self, tag: u32, out: &mut Vec<u8>);
    fn get_value(raw: Raw<'_>) -> Result<Self, Bad>;
    /// What an absent field stands for; `None`: it must be there.
    fn absent() -> Option<Self>;
    fn is_absent(&self) -> bool;
}

/// How a field of a type stands in a record: once, perhaps, or often.
pub trait Field: Sized {
    type Gathered: Default;

    fn put_field(&self, tag: u32, out: &mut Vec<u8>);
    fn gather(gathered: &mut Self::Gathered, raw: Raw<'_>) -> Result<(), Bad>;
    fn finish(gathered: Self::Gathered) -> Result<Self, Bad>;
}

/// What was read so far of one field.
pub struct Slot<F: Field>(F::Gathered);

impl<F: Field> Default for Slot<F> {
    fn default() -> Self {
        Slot(F::Gathered::default())
    }
}

impl<F: Field> Slot<F> {
    pub fn gather(&mut self, raw: Raw<'_>) -> Result<(), Bad> {
        F::gather(&mut self.0, raw)
    }

    pub fn finish(self) -> Result<F, Bad> {
        F::finish(self.0)
    }
}

/// A type whose values stand in a field once.
macro_rules! once {
    ($type:ty $(where [$($generic:tt)*])?) => {
        impl$(<$($generic)*>)? $crate::stored::codec::Field for $type {
            type Gathered = Option<Self>;

            fn put_field(&self, tag: u32, out: &mut Vec<u8>) {
                use $crate::stored::codec::Value;
                if !self.is_absent() {
                    self.put_value(tag, out);
                }
            }

            fn gather(
                gathered: &mut Option<Self>,
                raw: $crate::stored::codec::Raw<'_>,
            ) -> Result<(), $crate::stored::codec::Bad> {
                *gathered = Some($crate::stored::codec::Value::get_value(raw)?);
                Ok(())
            }

            fn finish(gathered: Option<Self>) -> Result<Self, $crate::stored::codec::Bad> {
                let absent = $crate::stored::codec::Value::absent;
                gathered.or_else(absent).ok_or($crate::stored::codec::Bad::Missing)
            }
        }
    };
}
pub(crate) use once;

/// A type that is a record within a record.
macro_rules! nested {
    ($type:ty $(where [$($generic:tt)*])?) => {
        impl$(<$($generic)*>)? $crate::stored::codec::Value for $type {
            fn put_value(&self, tag: u32, out: &mut Vec<u8>) {
                $crate::stored::codec::put_nested(tag, out, |out| {
                    $crate::stored::codec::Record::put(self, out)
                });
            }

            fn get_value(
                raw: $crate::stored::codec::Raw<'_>,
            ) -> Result<Self, $crate::stored::codec::Bad> {
                $crate::stored::codec::Record::get(raw.bytes()?)
            }

            fn absent() -> Option<Self> {
                None
            }

            fn is_absent(&self) -> bool {
                false
            }
        }
        $crate::stored::codec::once!($type $(where [$($generic)*])?);
    };
}
pub(crate) use nested;

/// The fields of a struct. All of its fields are named: a new one does not compile until it is
/// decided whether it is stored. Behind `but` stand those that are not, with what they are read as.
macro_rules! record {
    ($type:ty { $($tag:literal $field:ident),* $(,)? } $(but { $($not:ident = $as:expr),* $(,)? })?) => {
        impl $crate::stored::codec::Record for $type {
            fn put(&self, out: &mut Vec<u8>) {
                let Self { $($field,)* $($($not: _,)*)? } = self;
                $($crate::stored::codec::Field::put_field($field, $tag, out);)*
            }

            fn get(bytes: &[u8]) -> Result<Self, $crate::stored::codec::Bad> {
                $(let mut $field = $crate::stored::codec::Slot::default();)*
                for field in $crate::stored::codec::Fields(bytes) {
                    match field? {
                        $(($tag, raw) => $field.gather(raw)?,)*
                        (tag, _) => return Err($crate::stored::codec::Bad::UnknownField(tag)),
                    }
                }
                Ok(Self { $($field: $field.finish()?,)* $($($not: $as,)*)? })
            }
        }
        $crate::stored::codec::nested!($type);
    };
}
pub(crate) use record;

/// The numbers that the variants of an enum are stored as. They never change.
macro_rules! numbers {
    ($type:ident { $($number:literal $variant:ident),* $(,)? }) => {
        impl $crate::stored::codec::Value for $type {
            fn put_value(&self, tag: u32, out: &mut Vec<u8>) {
                let number: u64 = match self {
                    $($type::$variant => $number,)*
                };
                $crate::stored::codec::Value::put_value(&number, tag, out);
            }

            fn get_value(
                raw: $crate::stored::codec::Raw<'_>,
            ) -> Result<Self, $crate::stored::codec::Bad> {
                match <u64 as $crate::stored::codec::Value>::get_value(raw)? {
                    $($number => Ok($type::$variant),)*
                    other => Err($crate::stored::codec::Bad::UnknownValue(other)),
                }
            }

            fn absent() -> Option<Self> {
                Self::get_value($crate::stored::codec::Raw::Number(0)).ok()
            }

            fn is_absent(&self) -> bool {
                Self::absent() == Some(*self)
            }
        }
        $crate::stored::codec::once!($type);
    };
}
pub(crate) use numbers;

macro_rules! number {
    ($($type:ty),*) => {$(
        impl Value for $type {
            fn put_value(&self, tag: u32, out: &mut Vec<u8>) {
                put_key(tag, NUMBER, out);
                put_number(u64::from(*self), out);
            }

            fn get_value(raw: Raw<'_>) -> Result<Self, Bad> {
                raw.number()?.try_into().map_err(|_| Bad::Malformed)
            }

            fn absent() -> Option<Self> {
                Some(0)
            }

            fn is_absent(&self) -> bool {
                *self == 0
            }
        }
        once!($type);
    )*};
}
number!(u8, u16, u32, u64);

/// A name for a number: stored as the number.
macro_rules! named {
    ($($type:ident),*) => {$(
        impl Value for $type {
            fn put_value(&self, tag: u32, out: &mut Vec<u8>) {
                self.0.put_value(tag, out);
            }

            fn get_value(raw: Raw<'_>) -> Result<Self, Bad> {
                Value::get_value(raw).map($type)
            }

            fn absent() -> Option<Self> {
                Value::absent().map($type)
            }

            fn is_absent(&self) -> bool {
                self.0.is_absent()
            }
        }
        once!($type);
    )*};
}
pub(crate) use named;
named!(AppNo, DeviceNo, JobNo, MessageId);
record!(DeviceRef { 1 app, 2 device });

impl Value for bool {
    fn put_value(&self, tag: u32, out: &mut Vec<u8>) {
        u64::from(*self).put_value(tag, out);
    }

    fn get_value(raw: Raw<'_>) -> Result<Self, Bad> {
        match raw.number()? {
            0 => Ok(false),
            1 => Ok(true),
            _ => Err(Bad::Malformed),
        }
    }

    fn absent() -> Option<Self> {
        Some(false)
    }

    fn is_absent(&self) -> bool {
        !self
    }
}
once!(bool);

impl Value for f64 {
    fn put_value(&self, tag: u32, out: &mut Vec<u8>) {
        put_key(tag, FIXED, out);
        out.extend_from_slice(&self.to_bits().to_le_bytes());
    }

    fn get_value(raw: Raw<'_>) -> Result<Self, Bad> {
        match raw {
            Raw::Fixed(bits) => Ok(f64::from_bits(bits)),
            _ => Err(Bad::Malformed),
        }
    }

    fn absent() -> Option<Self> {
        Some(0.0)
    }

    fn is_absent(&self) -> bool {
        self.to_bits() == 0
    }
}
once!(f64);

impl Value for i64 {
    fn put_value(&self, tag: u32, out: &mut Vec<u8>) {
        put_key(tag, FIXED, out);
        out.extend_from_slice(&self.to_le_bytes());
    }

    fn get_value(raw: Raw<'_>) -> Result<Self, Bad> {
        match raw {
            Raw::Fixed(bits) => Ok(i64::from_le_bytes(bits.to_le_bytes())),
            _ => Err(Bad::Malformed),
        }
    }

    fn absent() -> Option<Self> {
        Some(0)
    }

    fn is_absent(&self) -> bool {
        *self == 0
    }
}
once!(i64);

/// A type that is written as bytes: how, and how it is made of them.
macro_rules! bytes {
    ($type:ty, $as_bytes:expr, $from:expr, $absent:expr) => {
        impl Value for $type {
            fn put_value(&self, tag: u32, out: &mut Vec<u8>) {
                let as_bytes: fn(&$type) -> &[u8] = $as_bytes;
                put_bytes(tag, as_bytes(self), out);
            }

            fn get_value(raw: Raw<'_>) -> Result<Self, Bad> {
                let from: fn(&[u8]) -> Option<$type> = $from;
                from(raw.bytes()?).ok_or(Bad::Malformed)
            }

            fn absent() -> Option<Self> {
                $absent
            }

            fn is_absent(&self) -> bool {
                Self::absent().as_ref() == Some(self)
            }
        }
        once!($type);
    };
}
bytes!(String, |s| s.as_bytes(), |b| String::from_utf8(b.to_vec()).ok(), Some(String::new()));
bytes!(Arc<str>, |s| s.as_bytes(), |b| str::from_utf8(b).ok().map(Arc::from), Some(Arc::from("")));
bytes!(Bytes, |b| b, |b| Some(Bytes::copy_from_slice(b)), Some(Bytes::new()));
bytes!(Box<[u8]>, |b| b, |b| Some(b.into()), Some(Box::default()));
bytes!([u8; 32], |b| b, |b| b.try_into().ok(), None);

impl Value for u128 {
    fn put_value(&self, tag: u32, out: &mut Vec<u8>) {
        put_bytes(tag, &self.to_le_bytes(), out);
    }

    fn get_value(raw: Raw<'_>) -> Result<Self, Bad> {
        raw.bytes()?.try_into().map(u128::from_le_bytes).map_err(|_| Bad::Malformed)
    }

    fn absent() -> Option<Self> {
        Some(0)
    }

    fn is_absent(&self) -> bool {
        *self == 0
    }
}
once!(u128);

impl Value for DeviceSet {
    fn put_value(&self, tag: u32, out: &mut Vec<u8>) {
        put_key(tag, BYTES, out);
        put_number(self.serialized_size() as u64, out);
        // Writing into a vector does not fail.
        let _ = self.serialize_into(out);
    }

    fn get_value(raw: Raw<'_>) -> Result<Self, Bad> {
        DeviceSet::deserialize_from(raw.bytes()?).map_err(|_| Bad::Malformed)
    }

    fn absent() -> Option<Self> {
        Some(DeviceSet::new())
    }

    fn is_absent(&self) -> bool {
        self.is_empty()
    }
}
once!(DeviceSet);

impl<T: Value> Field for Option<T> {
    type Gathered = Option<T>;

    fn put_field(&self, tag: u32, out: &mut Vec<u8>) {
        if let Some(value) = self {
            value.put_value(tag, out);
        }
    }

    fn gather(gathered: &mut Option<T>, raw: Raw<'_>) -> Result<(), Bad> {
        *gathered = Some(T::get_value(raw)?);
        Ok(())
    }

    fn finish(gathered: Option<T>) -> Result<Self, Bad> {
        Ok(gathered)
    }
}

impl<T: Value> Field for Vec<T> {
    type Gathered = Vec<T>;

    fn put_field(&self, tag: u32, out: &mut Vec<u8>) {
        self.iter().for_each(|value| value.put_value(tag, out));
    }

    fn gather(gathered: &mut Vec<T>, raw: Raw<'_>) -> Result<(), Bad> {
        gathered.push(T::get_value(raw)?);
        Ok(())
    }

    fn finish(gathered: Vec<T>) -> Result<Self, Bad> {
        Ok(gathered)
    }
}

/// Each entry is a record of key and value.
impl<V: Field> Field for BTreeMap<String, V> {
    type Gathered = Self;

    fn put_field(&self, tag: u32, out: &mut Vec<u8>) {
        for (key, value) in self {
            put_nested(tag, out, |out| {
                key.put_field(1, out);
                value.put_field(2, out);
            });
        }
    }

    fn gather(gathered: &mut Self, raw: Raw<'_>) -> Result<(), Bad> {
        let (key, value) = Record::get(raw.bytes()?)?;
        gathered.insert(key, value);
        Ok(())
    }

    fn finish(gathered: Self) -> Result<Self, Bad> {
        Ok(gathered)
    }
}

impl<A: Field, B: Field> Record for (A, B) {
    fn put(&self, out: &mut Vec<u8>) {
        self.0.put_field(1, out);
        self.1.put_field(2, out);
    }

    fn get(bytes: &[u8]) -> Result<Self, Bad> {
        let (mut first, mut second) = (Slot::default(), Slot::default());
        for field in Fields(bytes) {
            match field? {
                (1, raw) => first.gather(raw)?,
                (2, raw) => second.gather(raw)?,
                (tag, _) => return Err(Bad::UnknownField(tag)),
            }
        }
        Ok((first.finish()?, second.finish()?))
    }
}
nested!((A, B) where [A: Field, B: Field]);

/// What points to a record is stored as the record.
macro_rules! pointer {
    ($($pointer:ident),*) => {$(
        impl<T: Record> Record for $pointer<T> {
            fn put(&self, out: &mut Vec<u8>) {
                (**self).put(out);
            }

            fn get(bytes: &[u8]) -> Result<Self, Bad> {
                T::get(bytes).map($pointer::new)
            }
        }
        nested!($pointer<T> where [T: Record]);
    )*};
}
pointer!(Box, Arc);
