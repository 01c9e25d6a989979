use std::borrow::Cow;

use k8s_openapi::apimachinery::pkg::apis::meta::v1::ObjectMeta;
use kube::Resource;
use serde::{Deserialize, Deserializer, de::DeserializeOwned};
use serde_json::Value;

/// An object of the API that may turn out not to be one of type `T`. Read as `T` itself, a single
/// misfit would fail the whole list it is in, and with it every later change of every other object.
#[derive(Clone, Debug)]
pub(super) struct Loose<T> {
    /// Name, namespace and resourceVersion, nothing else.
    meta: ObjectMeta,
    /// The path of the field that does not fit, and why.
    pub(super) object: Result<T, (String, String)>,
}

impl<'de, T: DeserializeOwned> Deserialize<'de> for Loose<T> {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let mut value = Value::deserialize(deserializer)?;
        // Often half of an object, and nobody reads them.
        if let Some(meta) = value.get_mut("metadata").and_then(Value::as_object_mut) {
            meta.remove("managedFields");
        }
        let text = |name: &str| value["metadata"][name].as_str().map(str::to_owned);
        let meta = ObjectMeta {
            name: text("name"),
            namespace: text("namespace"),
            resource_version: text("resourceVersion"),
            ..ObjectMeta::default()
        };
        let object = serde_path_to_error::deserialize(value)
            .map_err(|error| (error.path().to_string(), error.inner().to_string()));
        Ok(Self { meta, object })
    }
}

impl<T: Resource<DynamicType = ()>> Resource for Loose<T> {
    type DynamicType = ();
    type Scope = T::Scope;

    fn kind(dt: &()) -> Cow<'_, str> {
        T::kind(dt)
    }

    fn group(dt: &()) -> Cow<'_, str> {
        T::group(dt)
    }

    fn version(dt: &()) -> Cow<'_, str> {
        T::version(dt)
    }

    fn plural(dt: &()) -> Cow<'_, str> {
        T::plural(dt)
    }

    fn meta(&self) -> &ObjectMeta {
        &self.meta
    }

    fn meta_mut(&mut self) -> &mut ObjectMeta {
        &mut self.meta
    }
}
