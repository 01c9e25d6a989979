use std::borrow::Cow;

use k8s_openapi::apimachinery::pkg::apis::meta::v1::ObjectMeta;
use kube::Resource;
use serde::{Deserialize, Deserializer, de::Error as _};
use serde_json::{Value, value::RawValue};

use super::wire::Stripped;

/// An object of the API that may turn out not to be one of type `T`. Read as `T` itself, a single
/// misfit would fail the whole list it is in, and with it every later change of every other object.
#[derive(Clone, Debug)]
pub(super) struct Loose<T> {
    /// Name, namespace and resourceVersion, nothing else.
    meta: ObjectMeta,
    /// The path of the field that does not fit, and why.
    pub(super) object: Result<T, (String, String)>,
}

impl<'de, T: Stripped> Deserialize<'de> for Loose<T> {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        // Its text, to be read twice if need be. An event names its type before its object, so no
        // object is held back in another form.
        let text = <&RawValue>::deserialize(deserializer)?.get();
        Ok(match serde_json::from_str::<T::Read>(text) {
            Ok(read) => Self::fits(read.into()),
            Err(_) => Self::misfit(&serde_json::from_str(text).map_err(D::Error::custom)?),
        })
    }
}

impl<T: Stripped> Loose<T> {
    fn fits(object: T) -> Self {
        let known = object.meta();
        let meta = ObjectMeta {
            name: known.name.clone(),
            namespace: known.namespace.clone(),
            resource_version: known.resource_version.clone(),
            ..ObjectMeta::default()
        };
        let object = Ok(object);
        Self { meta, object }
    }

    fn misfit(value: &Value) -> Self {
        let text = |name: &str| value["metadata"][name].as_str().map(str::to_owned);
        let meta = ObjectMeta {
            name: text("name"),
            namespace: text("namespace"),
            resource_version: text("resourceVersion"),
            ..ObjectMeta::default()
        };
        let object = serde_path_to_error::deserialize::<_, T::Read>(value)
            .map(Into::into)
            .map_err(|error| (error.path().to_string(), error.inner().to_string()));
        Self { meta, object }
    }
}

impl<T: Stripped> Resource for Loose<T> {
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
