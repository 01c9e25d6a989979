use clap::Args;

use super::CliError;
use crate::inspect::{Filter, FilterError};

/// Which lines are asked for.
#[derive(Args, Debug)]
pub(super) struct FilterArgs {
    /// Only Services of this namespace.
    #[arg(short, long, value_name = "NAMESPACE")]
    namespace: Option<String>,
    /// Only this Service: its name, also with namespace and port (default/web:http).
    #[arg(long, value_name = "NAME")]
    service: Option<String>,
    /// Only lines with this address, with an address in this range, or with this address and port.
    #[arg(long, value_name = "IP[:PORT]|CIDR")]
    address: Option<String>,
}

impl FilterArgs {
    pub(super) fn filter(&self) -> Result<Filter, CliError> {
        let [namespace, service, address] =
            [&self.namespace, &self.service, &self.address].map(Option::as_deref);
        Filter::parse(namespace, service, address)
            .map_err(|error: FilterError| CliError::Usage(error.to_string()))
    }
}
