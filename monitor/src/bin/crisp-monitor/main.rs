//! monitor
fn main(){}
