//! Holds the JSON against the proto files: the same keys, no more and no fewer.

use ferrio_api::v1::FILE_DESCRIPTOR_SET;
use prost::Message;
use prost_types::{DescriptorProto, FileDescriptorSet, field_descriptor_proto::Type};
use serde_json::Value;

fn message(name: &str) -> DescriptorProto {
    let set = FileDescriptorSet::decode(FILE_DESCRIPTOR_SET).expect("descriptors");
    let mut messages = set.file.into_iter().flat_map(|file| file.message_type);
    messages.find(|message| message.name() == name).unwrap_or_else(|| panic!("no message {name}"))
}

/// Panics unless `value` has exactly the fields of the message, all the way down.
pub fn assert_keys(value: &Value, name: &str) {
    let message = message(name);
    let object = value.as_object().unwrap_or_else(|| panic!("{name} is not an object: {value}"));
    let mut keys: Vec<_> = object.keys().map(String::as_str).collect();
    let mut fields: Vec<_> = message.field.iter().map(|field| field.name()).collect();
    keys.sort_unstable();
    fields.sort_unstable();
    assert_eq!(keys, fields, "keys of {name}");
    for field in message.field.iter().filter(|field| field.r#type() == Type::Message) {
        let inner = field.type_name().rsplit('.').next().expect("a name");
        match &object[field.name()] {
            Value::Array(items) => items.iter().for_each(|item| assert_keys(item, inner)),
            item => assert_keys(item, inner),
        }
    }
}
