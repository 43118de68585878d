//! The admin API: HTTP/1.1 and JSON on a unix socket, `/v1/...`, for whoever may open the socket
//! (root).
//!
//! | method and path | request | answer |
//! |---|---|---|
//! | `GET /v1/status` | | `Status` |
//! | `POST /v1/init`, `/v1/join`, `/v1/leave` | `InitSpec`, `JoinSpec`, nothing | `Membership` |
//! | `GET`, `POST /v1/tokens` | `TokenSpec` | `[Token]`, `TokenCreated` |
//! | `DELETE /v1/tokens/REF` | | `Token` |
//! | `GET /v1/nodes[/REF]`, `/v1/peers[/REF]` | | `[Node]`, `Node`, `[Peer]`, `Peer` |
//! | `GET`, `POST /v1/networks`; `GET`, `DELETE /v1/networks/REF` | `NetworkSpec` | `Network` |
//! | `GET`, `POST /v1/services`; `GET`, `DELETE /v1/services/REF` | `ServiceSpec` | `Service` |
//! | `PATCH /v1/services/REF` | `ServiceUpdate` | `Service` |
//! | `POST /v1/services/REF/health` | `HealthWord` | `Service` |
//! | `GET`, `POST /v1/endpoints`; `GET`, `DELETE /v1/endpoints/REF` | `AttachSpec` | `Endpoint` |
//! | `PATCH /v1/endpoints/REF` | `EndpointSpec` | `Endpoint` |
//! | `POST /v1/attachments`; `POST /v1/attachments/check` | `AttachmentSpec`; `AttachmentKey` | `Attachment` |
//! | `POST /v1/attachments/remove`, `.../keep` | `AttachmentKey`, `AttachmentsKept` | `[Endpoint]` |
//! | `GET`, `POST /v1/sandboxes`; `GET`, `DELETE /v1/sandboxes/REF` | `SandboxSpec` | `Sandbox` |
//! | `GET /v1/sandboxes?all=true` | | `[Sandbox]`, with those that have ended |
//! | `POST /v1/sandboxes/REF/started`, `.../ended` | `SandboxStarted`, `SandboxEnded` | `Sandbox` |
//! | `POST /v1/sandboxes/REF/networks`; `DELETE /v1/sandboxes/REF/networks/REF` | `Connection` | `Endpoint` |
//! | `GET /v1/drops`, `/v1/map`, `/v1/doctor` | | `[DropRow]`, `[MapRow]`, `[Diagnosis]` |
//! | `GET /v1/flows[?service=REF][&network=REF][&limit=N]` | | `Flows` |
//! | `GET /v1/locate/ADDRESS[?network=REF]` | | `Location`, or `VipLocation` of a service |
//! | `GET /v1/dns/NAME[?network=REF][&type=TYPE]` | | `[DnsRecord]` |
//! | `GET /v1/map/diff/REF` | | `[MapDiffRow]` |
//!
//! Every failure is `{"error":{"code","message","hint"}}` with the status of its code. It refuses
//! bodies of more than 1 MiB and unknown fields.

mod backend;
mod failure;
pub mod resolve;
mod router;
mod socket;

pub use backend::Backend;
pub use router::router;
pub use socket::ApiSocket;
