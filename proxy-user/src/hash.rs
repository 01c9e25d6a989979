//! Tables of what is looked up for every event. Their hash is quicker than the standard library's, and as
//! random: nobody who names objects knows which of them collide.

use foldhash::fast::RandomState;

pub(crate) type HashMap<K, V> = std::collections::HashMap<K, V, RandomState>;
pub(crate) type HashSet<T> = std::collections::HashSet<T, RandomState>;
