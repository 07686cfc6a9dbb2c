//! The protocols of the daemon's socket as Rust types, generated from api.proto and admin.proto at build time.
//!
//! Holds no logic and must not know who serves or calls: client and server side come from here, nothing else.

/// The Container Runtime Interface of Kubernetes.
pub mod runtime {
    /// CRI v1: messages, `runtime_service_*` and `image_service_*`.
    #[expect(
        missing_docs,
        unused_qualifications,
        clippy::allow_attributes,
        clippy::allow_attributes_without_reason,
        clippy::too_many_lines,
        reason = "generated code; obvious fields carry no comment in api.proto"
    )]
    pub mod v1 {
        tonic::include_proto!("runtime.v1");
    }
}

/// Calls of crisp's own, for what CRI has none.
pub mod admin {
    /// Messages and `admin_client`, `admin_server`.
    #[expect(
        missing_docs,
        unused_qualifications,
        clippy::allow_attributes,
        clippy::allow_attributes_without_reason,
        clippy::too_many_lines,
        reason = "generated code; obvious fields carry no comment in admin.proto"
    )]
    pub mod v1 {
        tonic::include_proto!("crisp.v1");
    }
}
