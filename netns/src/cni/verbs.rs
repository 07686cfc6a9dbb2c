//! The commands of CNI for a whole list: which plugin is called when, with what, and what is on file meanwhile.

use std::collections::BTreeSet;
use std::net::IpAddr;
use std::path::{Path, PathBuf};
use std::sync::PoisonError;

use serde::Deserialize;
use serde_json::{Map, Value, json};

use super::config::{NetworkList, Plugin};
use super::error::{CniError, Failure, PluginError};
use super::invoke::{self, Attachment, Verb};
use super::ledger::Entry;
use super::result::{self, AttachResult, ResultProblem};
use super::version::Version;
use super::{Cni, exec};

/// One call of one plugin.
struct Call<'a> {
    list: &'a NetworkList,
    plugin: &'a Plugin,
    verb: Verb,
    attachment: Option<&'a Attachment>,
    /// What the plugin is told on its standard input.
    input: Map<String, Value>,
}

impl Call<'_> {
    fn error(&self, failure: Failure) -> PluginError {
        PluginError {
            network: self.list.name.clone(),
            verb: self.verb,
            plugin: self.plugin.kind.clone(),
            failure,
        }
    }
}

impl Cni {
    /// Attaches a namespace: ADD of every plugin of `list`.
    ///
    /// # Errors
    /// What a plugin did not do. What the others did is undone then; where that fails as well, the ledger keeps the entry
    /// for [`Self::detach`].
    pub fn attach(&self, list: &NetworkList, attachment: Attachment) -> Result<AttachResult, CniError> {
        attachment.check()?;
        let _adding = self.adding.read().unwrap_or_else(PoisonError::into_inner);
        let mut entry = Entry { list: list.clone(), attachment, result: None, complete: false };
        self.ledger.write_synced(&entry)?;
        match self.add(&mut entry) {
            Ok(result) => Ok(result),
            Err(add) => {
                let Attachment { container_id, ifname, .. } = &entry.attachment;
                match self.detach(container_id, ifname, true) {
                    Ok(()) => Err(add),
                    Err(delete) => Err(CniError::Undo { add: Box::new(add), delete: Box::new(delete) }),
                }
            }
        }
    }

    fn add(&self, entry: &mut Entry) -> Result<AttachResult, CniError> {
        let list = entry.list.clone();
        let mut addresses = Vec::new();
        for plugin in &list.plugins {
            addresses = self.add_one(entry, &list, plugin)?;
        }
        if addresses.is_empty() {
            let last = list.plugins.last().map(|plugin| plugin.kind.clone()).unwrap_or_default();
            let problem = ResultProblem::NoAddress { ifname: entry.attachment.ifname.clone() };
            let failure = Failure::Result(problem);
            return Err(PluginError { network: list.name, verb: Verb::Add, plugin: last, failure }.into());
        }
        entry.complete = true;
        self.ledger.write_kept(entry)?;
        Ok(AttachResult { addresses, json: entry.result.clone().unwrap_or_default() })
    }

    fn add_one(
        &self,
        entry: &mut Entry,
        list: &NetworkList,
        plugin: &Plugin,
    ) -> Result<Vec<IpAddr>, CniError> {
        let attachment = Some(&entry.attachment);
        let input = invoke::input(list, plugin, attachment, entry.result.as_ref());
        let call = Call { list, plugin, verb: Verb::Add, attachment, input };
        let printed = self.run(&call)?;
        let (json, addresses) = result::read(&printed, &entry.attachment.ifname, list.version)
            .map_err(|problem| call.error(problem.into()))?;
        // After every plugin: one that needs the result to take its things away must get what there was of it.
        entry.result = Some(json);
        self.ledger.write_kept(entry)?;
        Ok(addresses)
    }

    /// Takes a namespace off its network: DEL of every plugin of the list that was used, the last first, with what is on
    /// file. All are called, also after one has failed. Nothing on file: nothing to do.
    ///
    /// `there`: whether the namespace still exists.
    ///
    /// # Errors
    /// The first plugin that failed; the entry stays, and this can be tried again.
    pub fn detach(&self, container_id: &str, ifname: &str, there: bool) -> Result<(), CniError> {
        let Some(mut entry) = self.ledger.read(container_id, ifname)? else { return Ok(()) };
        if !there {
            entry.attachment.netns = PathBuf::new();
        }
        let list = &entry.list;
        // The specification gives DEL the result since 0.4.0, and plugins of older versions ignore it.
        let previous = entry.result.as_ref().filter(|_| list.version >= Version::V0_4_0);
        let mut first = Ok(());
        for plugin in list.plugins.iter().rev() {
            let attachment = Some(&entry.attachment);
            let input = invoke::input(list, plugin, attachment, previous);
            match self.run(&Call { list, plugin, verb: Verb::Del, attachment, input }) {
                Ok(_) => {}
                // With the namespace went what the plugin misses.
                Err(error) if !there && error.failure.is_absence() => {
                    tracing::debug!(%error, "nothing to give back in a namespace that is gone");
                }
                Err(error) => first = first.and(Err(error)),
            }
        }
        first?;
        Ok(self.ledger.forget(container_id, ifname)?)
    }

    /// Whether an attachment is as its plugins have left it: CHECK of every plugin. Nothing is asked of lists that do
    /// not want it, or of versions before 0.4.0.
    ///
    /// # Errors
    /// The first plugin that misses something.
    pub fn check(&self, container_id: &str, ifname: &str) -> Result<(), CniError> {
        let Some(entry) = self.ledger.read(container_id, ifname)? else { return Ok(()) };
        let list = &entry.list;
        if list.disable_check || list.version < Version::V0_4_0 {
            return Ok(());
        }
        for plugin in &list.plugins {
            let attachment = Some(&entry.attachment);
            let input = invoke::input(list, plugin, attachment, entry.result.as_ref());
            self.run(&Call { list, plugin, verb: Verb::Check, attachment, input })?;
        }
        Ok(())
    }

    /// Has plugins remove what belongs to no attachment that is on file: GC of every plugin. Nothing is attached while
    /// it runs. Nothing is asked of lists that do not want it, or of versions before 1.1.0.
    ///
    /// # Errors
    /// The first plugin that failed; all are asked.
    pub fn collect(&self, list: &NetworkList) -> Result<(), CniError> {
        if list.disable_gc || list.version < Version::V1_1_0 {
            return Ok(());
        }
        let _alone = self.adding.write().unwrap_or_else(PoisonError::into_inner);
        let valid: Vec<_> = (self.ledger.keys()?.into_iter())
            .map(|(id, ifname)| json!({ "containerID": id, "ifname": ifname }))
            .collect();
        let mut first = Ok(());
        for plugin in &list.plugins {
            let mut input = invoke::input(list, plugin, None, None);
            // The second is what the specification's library said before the first was agreed on.
            for key in ["cni.dev/valid-attachments", "cni.dev/attachments"] {
                input.insert(key.to_owned(), Value::Array(valid.clone()));
            }
            let ran = self.run(&Call { list, plugin, verb: Verb::Gc, attachment: None, input });
            first = first.and(ran.map(drop));
        }
        Ok(first?)
    }

    /// Whether an ADD could succeed: STATUS of every plugin. Versions before 1.1.0 cannot be asked.
    ///
    /// # Errors
    /// The first plugin that is not ready. Code 50: it is not; 51: what runs on may have limited connectivity as well.
    pub fn status(&self, list: &NetworkList) -> Result<(), CniError> {
        if list.version < Version::V1_1_0 {
            return Ok(());
        }
        for plugin in &list.plugins {
            let input = invoke::input(list, plugin, None, None);
            self.run(&Call { list, plugin, verb: Verb::Status, attachment: None, input })?;
        }
        Ok(())
    }

    /// The versions that a plugin of `list` speaks.
    ///
    /// # Errors
    /// It does not say.
    pub fn versions(&self, list: &NetworkList, plugin: &Plugin) -> Result<BTreeSet<String>, CniError> {
        #[derive(Deserialize)]
        struct Said {
            #[serde(rename = "supportedVersions")]
            supported: BTreeSet<String>,
        }
        let input = json!({ "cniVersion": list.version.name() });
        let input = input.as_object().cloned().unwrap_or_default();
        let call = Call { list, plugin, verb: Verb::Version, attachment: None, input };
        let printed = self.run(&call)?;
        let said: Said = serde_json::from_slice(&printed).map_err(|error| {
            let printed = super::output::shown(&printed);
            call.error(ResultProblem::Form { reason: error.to_string(), printed }.into())
        })?;
        Ok(said.supported)
    }

    fn run(&self, call: &Call<'_>) -> Result<Vec<u8>, PluginError> {
        let fail = |failure| call.error(failure);
        let program = self.program(&call.plugin.kind).map_err(fail)?;
        let input = Value::Object(call.input.clone()).to_string();
        let environment = invoke::environment(call.verb, call.attachment, &self.bin_dirs);
        let what = call.attachment.map_or("node", |attachment| attachment.container_id.as_str());
        let mut place = self.confine.confine(what).map_err(|error| fail(Failure::Confine(error)))?;
        let started = std::time::Instant::now();
        let printed = exec::run(place.as_mut(), &program, &environment, input.as_bytes(), self.limit)
            .and_then(super::output::Output::success);
        tracing::debug!(
            verb = call.verb.name(),
            plugin = call.plugin.kind,
            container = what,
            milliseconds = started.elapsed().as_millis(),
            failed = printed.is_err(),
            "CNI plugin ended"
        );
        printed.map_err(fail)
    }

    fn program(&self, kind: &str) -> Result<PathBuf, Failure> {
        let paths = self.bin_dirs.iter().map(|folder| folder.join(kind));
        let mut files = paths.filter(|path: &PathBuf| Path::is_file(path));
        files.next().ok_or_else(|| Failure::Missing { folders: self.bin_dirs.clone() })
    }
}
