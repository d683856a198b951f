//! Attributes of devices, as JSON has them: whole numbers stay whole, and what would lose digits is refused.

use postrider_core::model::Attribute;
use serde::de::Error as _;
use serde::{Deserialize, Deserializer, Serialize};
use serde_json::value::RawValue;
use serde_json::{Value, json};
use utoipa::openapi::schema::{ObjectBuilder, SchemaType, Type};
use utoipa::openapi::{RefOr, Schema};
use utoipa::{PartialSchema, ToSchema};

/// The value of an attribute.
#[derive(Clone, Debug, PartialEq, Serialize)]
#[serde(untagged)]
pub enum AttributeValue {
    Text(String),
    Integer(i64),
    Number(f64),
    Bool(bool),
}

impl From<AttributeValue> for Attribute {
    fn from(value: AttributeValue) -> Attribute {
        match value {
            AttributeValue::Text(text) => Attribute::Text(text),
            AttributeValue::Integer(number) => Attribute::Integer(number),
            AttributeValue::Number(number) => Attribute::Number(number),
            AttributeValue::Bool(yes) => Attribute::Bool(yes),
        }
    }
}

impl From<Attribute> for AttributeValue {
    fn from(value: Attribute) -> AttributeValue {
        match value {
            Attribute::Text(text) => AttributeValue::Text(text),
            Attribute::Integer(number) => AttributeValue::Integer(number),
            Attribute::Number(number) => AttributeValue::Number(number),
            Attribute::Bool(yes) => AttributeValue::Bool(yes),
        }
    }
}

impl<'de> Deserialize<'de> for AttributeValue {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<AttributeValue, D::Error> {
        let raw = Box::<RawValue>::deserialize(deserializer)?;
        AttributeValue::from_json(raw.get()).map_err(D::Error::custom)
    }
}

impl AttributeValue {
    /// Reads the text itself, since a parsed decimal no longer shows which digits it lost.
    fn from_json(text: &str) -> Result<AttributeValue, &'static str> {
        match serde_json::from_str(text) {
            Ok(Value::String(text)) => Ok(AttributeValue::Text(text)),
            Ok(Value::Bool(yes)) => Ok(AttributeValue::Bool(yes)),
            Ok(Value::Number(number)) => match (number.as_i64(), number.as_f64()) {
                (Some(whole), _) => Ok(AttributeValue::Integer(whole)),
                (None, Some(float)) if !number.is_u64() && keeps_digits(text, float) => {
                    Ok(AttributeValue::Number(float))
                }
                _ => Err("the number would lose digits; send it as a string"),
            },
            _ => Err("must be a string, a number or a boolean"),
        }
    }
}

/// Whether `float` has all digits of the JSON number that it was read from.
fn keeps_digits(text: &str, float: f64) -> bool {
    float.is_finite() && decimal(text) == decimal(&format!("{float:e}"))
}

/// A JSON number as its digits without zeros around them, and the power of ten of the last one.
fn decimal(text: &str) -> (bool, String, i64) {
    let (negative, text) = text.strip_prefix('-').map_or((false, text), |rest| (true, rest));
    let (mantissa, exponent) = text.split_once(['e', 'E']).unwrap_or((text, "0"));
    let (whole, fraction) = mantissa.split_once('.').unwrap_or((mantissa, ""));
    let digits = format!("{whole}{fraction}");
    let digits = digits.trim_start_matches('0');
    let kept = digits.trim_end_matches('0');
    if kept.is_empty() {
        return (negative, String::new(), 0);
    }
    let power = exponent.parse::<i64>().unwrap_or(i64::MAX / 2);
    let power = power.saturating_sub(fraction.len() as i64);
    (negative, kept.to_owned(), power.saturating_add((digits.len() - kept.len()) as i64))
}

impl ToSchema for AttributeValue {}

impl PartialSchema for AttributeValue {
    fn schema() -> RefOr<Schema> {
        let types = [Type::String, Type::Integer, Type::Number, Type::Boolean];
        ObjectBuilder::new()
            .schema_type(SchemaType::Array(types.to_vec()))
            .description(Some(
                "The value of an attribute. Integers have 64 bits; numbers that would lose digits are refused.",
            ))
            .examples([json!(12)])
            .into()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn numbers_keep_all_their_digits_or_are_refused() {
        for (text, shown) in [
            ("9007199254740993", "9007199254740993"),
            ("-9223372036854775808", "-9223372036854775808"),
            ("12", "12"),
            ("12.0", "12.0"),
            ("0.1", "0.1"),
            ("-0", "-0.0"),
            ("2.50", "2.5"),
            ("1e3", "1000.0"),
            ("6.02E+23", "6.02e+23"),
            ("0.000", "0.0"),
        ] {
            let value: AttributeValue = serde_json::from_str(text).unwrap();
            assert_eq!(serde_json::to_string(&value).unwrap(), shown, "{text}");
        }
        for bad in [
            "9223372036854775808",
            "18446744073709551615",
            "3.14159265358979323846",
            "123456789012345678901234567890.5",
            "1e-400",
            "9007199254740993.0",
            "null",
            "[]",
            "{}",
        ] {
            assert!(serde_json::from_str::<AttributeValue>(bad).is_err(), "{bad}");
        }
    }
}
