// The button "plan" on the nodes that stream blocks: what will stay and what will be streamed,
// before anything is queued. The server tells it from the header of the file.
import { app } from "../../scripts/app.js"
import { api } from "../../scripts/api.js"

const NODES = ["BlockSwapWanVideo", "WanVideoBlockSwap", "BlockSwapWanVideoLoader"]
const FARTHEST = 100 // nodes between the swap node and the loader
const WRAPPERS = "WanVideoModelLoader" // whose widget for its file is named after the model

function nodeBefore(node, named) {
  const slots = node.inputs ?? []
  const slot = named
    ? slots.findIndex((input) => input.name === named)
    : slots.findIndex((input) => input.name === "model" || /MODEL|\*/.test(String(input.type)))
  return slot < 0 ? null : node.getInputNode(slot)
}

function widget(node, name) {
  return node?.widgets?.find((found) => found.name === name)?.value
}

function fileOf(node) {
  return widget(node, node?.type === WRAPPERS ? "model" : "unet_name")
}

function loaderOf(node) {
  let at = node
  for (let steps = 0; at && steps < FARTHEST; steps++) {
    if (fileOf(at) !== undefined) return at
    const before = nodeBefore(at)
    if (!before) return at === node ? null : at
    at = before
  }
  return null
}

function widgetsOf(node) {
  const linked = new Set((node.inputs ?? []).filter((i) => i.link != null).map((i) => i.name))
  const own = (node.widgets ?? []).filter((found) => !linked.has(found.name))
  return Object.fromEntries(own.map((found) => [found.name, found.value]))
}

async function plan(node) {
  const loader = loaderOf(node)
  const args = nodeBefore(node, "block_swap_args")
  const asked = {
    node_id: String(node.id),
    client_id: api.clientId,
    loader: loader?.type,
    file: fileOf(loader),
    weight_dtype: widget(loader, "weight_dtype"),
    base_precision: widget(loader, "base_precision"),
    joined: !!loader && !!nodeBefore(loader, "extra_model"),
    managed: !!loader && !!nodeBefore(loader, "vram_management_args"),
    args: args && widgetsOf(args),
    args_node: args?.type,
  }
  const answer = await api.fetchApi("/blockswap/plan", {
    method: "POST",
    headers: { "Content-Type": "application/json" },
    body: JSON.stringify(asked),
  })
  if (!answer.ok) throw new Error(`no plan: the server answered ${answer.status}`)
  return (await answer.json()).text
}

app.registerExtension({
  name: "blockswap.plan",
  nodeCreated(node) {
    const takesModel = node.inputs?.some((input) => input.name === "model")
    if (!NODES.includes(node.comfyClass) || !(takesModel || widget(node, "unet_name"))) return
    const button = node.addWidget("button", "plan", null, () => plan(node), { serialize: false })
    button.serialize = false
    button.tooltip = "What will stay and what will be streamed, told before the run."
  },
})
