//! crisp
fn main(){}
