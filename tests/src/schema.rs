//! As much of JSON Schema as descriptions of our API use: whether a value is as a schema says. A word that it does not know is an error,
//! so nothing passes unlooked at.

use serde_json::Value;

/// Words that say nothing about what is valid.
const REMARKS: [&str; 5] = ["description", "title", "default", "format", "$schema"];

/// What is wrong with `value`, as `schema` of `document` has it; each with where it is.
#[must_use]
pub fn faults(document: &Value, schema: &Value, value: &Value) -> Vec<String> {
    let mut found = Vec::new();
    look(document, schema, value, "", &mut found);
    found
}

fn look(document: &Value, schema: &Value, value: &Value, at: &str, found: &mut Vec<String>) {
    let words = match schema {
        Value::Bool(true) => return,
        Value::Object(words) => words,
        other => return found.push(format!("{at}: {other} is no schema")),
    };
    for (word, says) in words {
        let is_met = match word.as_str() {
            remark if REMARKS.contains(&remark) => true,
            "$ref" => match says.as_str().and_then(|target| document.pointer(target.strip_prefix('#')?)) {
                Some(target) => {
                    look(document, target, value, at, found);
                    true
                }
                None => false,
            },
            "type" => match says {
                Value::Array(kinds) => kinds.iter().any(|kind| is_of(kind, value)),
                kind => is_of(kind, value),
            },
            "const" => says == value,
            "enum" => says.as_array().is_some_and(|all| all.contains(value)),
            "minimum" => value.as_f64().is_none_or(|number| says.as_f64().is_some_and(|least| number >= least)),
            "maximum" => value.as_f64().is_none_or(|number| says.as_f64().is_some_and(|most| number <= most)),
            "anyOf" | "oneOf" => {
                let fits = |schema: &&Value| faults(document, schema, value).is_empty();
                let count = says.as_array().map_or(0, |all| all.iter().filter(fits).count());
                if word == "oneOf" { count == 1 } else { count > 0 }
            }
            "required" => value.as_object().is_none_or(|members| {
                says.as_array().is_some_and(|all| {
                    all.iter().all(|name| name.as_str().is_some_and(|name| members.contains_key(name)))
                })
            }),
            "properties" => {
                for (name, member) in value.as_object().into_iter().flatten() {
                    if let Some(schema) = says.get(name) {
                        look(document, schema, member, &format!("{at}/{name}"), found);
                    }
                }
                true
            }
            "additionalProperties" => {
                let known = words.get("properties").and_then(Value::as_object);
                let others = value.as_object().into_iter().flatten();
                let mut others = others.filter(|(name, _)| known.is_none_or(|known| !known.contains_key(*name)));
                match says {
                    Value::Bool(false) => others.next().is_none(),
                    schema => {
                        others
                            .for_each(|(name, member)| look(document, schema, member, &format!("{at}/{name}"), found));
                        true
                    }
                }
            }
            "items" => {
                for (number, item) in value.as_array().into_iter().flatten().enumerate() {
                    look(document, says, item, &format!("{at}/{number}"), found);
                }
                true
            }
            _ => {
                found.push(format!("{at}: {word} is a word that is not looked at"));
                true
            }
        };
        if !is_met {
            found.push(format!("{at}: {value} is not as {word} says: {says}"));
        }
    }
}

fn is_of(kind: &Value, value: &Value) -> bool {
    match kind.as_str().unwrap_or_default() {
        "null" => value.is_null(),
        "boolean" => value.is_boolean(),
        "integer" => value.is_u64() || value.is_i64(),
        "number" => value.is_number(),
        "string" => value.is_string(),
        "array" => value.is_array(),
        "object" => value.is_object(),
        _ => false,
    }
}

/// Every member that a value has and its schema does not name: what was forgotten in a description.
#[must_use]
pub fn unnamed(document: &Value, schema: &Value, value: &Value) -> Vec<String> {
    let schema = match schema.get("$ref").and_then(Value::as_str).and_then(|target| document.pointer(&target[1..])) {
        Some(target) => target,
        None => schema,
    };
    if *schema == Value::Bool(true) {
        return Vec::new();
    }
    let nested = |schema: &Value, value: &Value, at: &str| {
        unnamed(document, schema, value).into_iter().map(|name| format!("{at}/{name}")).collect::<Vec<_>>()
    };
    if let Some(either) = schema.get("anyOf").and_then(Value::as_array) {
        let fits = either.iter().find(|schema| faults(document, schema, value).is_empty());
        return fits.map(|schema| unnamed(document, schema, value)).unwrap_or_default();
    }
    match value {
        Value::Object(members) => {
            let known = schema.get("properties").and_then(Value::as_object);
            let others = schema.get("additionalProperties").filter(|says| **says != Value::Bool(false));
            let names =
                members.iter().flat_map(|(name, member)| match known.and_then(|known| known.get(name)).or(others) {
                    Some(schema) => nested(schema, member, name),
                    None => vec![name.clone()],
                });
            names.collect()
        }
        Value::Array(items) => {
            let of_items = schema.get("items").cloned().unwrap_or(Value::Bool(true));
            items.iter().enumerate().flat_map(|(number, item)| nested(&of_items, item, &number.to_string())).collect()
        }
        _ => Vec::new(),
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn what_differs_from_a_schema_is_found_and_what_is_not_understood_too() {
        let document = json!({ "types": { "Pair": {
            "type": "object", "required": ["a"], "additionalProperties": false,
            "properties": { "a": { "type": "integer", "minimum": 0 }, "b": { "type": ["string", "null"] } },
        } } });
        let pairs = json!({ "type": "array", "items": { "$ref": "#/types/Pair" } });
        let count = |value: Value| faults(&document, &pairs, &value).len();
        assert_eq!(count(json!([{ "a": 1, "b": null }, { "a": 0, "b": "x" }])), 0);
        for wrong in [
            json!({}),
            json!([{ "b": "x" }]),
            json!([{ "a": -1 }]),
            json!([{ "a": 1.5 }]),
            json!([{ "a": 1, "b": 2 }]),
            json!([{ "a": 1, "c": 2 }]),
        ] {
            assert_eq!(count(wrong.clone()), 1, "{wrong}");
        }
        assert_eq!(faults(&document, &json!({ "pattern": "x" }), &json!("y")).len(), 1);
        assert_eq!(unnamed(&document, &pairs, &json!([{ "a": 1, "c": 2 }])), ["0/c"]);
    }
}
