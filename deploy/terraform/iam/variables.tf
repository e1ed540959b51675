variable "name" {
  description = "Prefix of the roles' names."
  type        = string
  default     = "relay"
}

variable "table" {
  description = "The table of DynamoDB (--sqs-table)."
  type        = string
  default     = "relay"
}

variable "prefix" {
  description = "The prefix of queues in SQS (--sqs-prefix)."
  type        = string
  default     = "relay-"

  validation {
    condition     = can(regex("^[A-Za-z0-9_-]{1,40}$", var.prefix))
    error_message = "prefix has 1 to 40 letters, digits, - and _: an empty one would give rights on every queue of the account."
  }
}

variable "kms_key_arns" {
  description = "Your own KMS keys on table or queues; without any, roles have no right on keys."
  type        = set(string)
  default     = []

  validation {
    condition     = alltrue([for key in var.kms_key_arns : can(regex(":key/[0-9a-f-]+$", key))])
    error_message = "kms_key_arns are the ARNs of single keys (…:key/…); every key of the account is more than relay needs."
  }
}

variable "cluster_name" {
  description = "The EKS cluster whose pods take the roles, by Pod Identity. Null associates none: take the output role_arns where your pods get their roles."
  type        = string
  default     = null
}

variable "namespace" {
  description = "The namespace of relay's service accounts."
  type        = string
  default     = "relay"
}

variable "service_accounts" {
  description = "The service account of each role. One that is null gets no role."
  type = object({
    serving = optional(string, "relay")
    working = optional(string, "relay-worker")
    keda    = optional(string)
  })
  default = {}
}

variable "keda_namespace" {
  description = "The namespace of KEDA's operator."
  type        = string
  default     = "keda"
}

variable "tags" {
  description = "Tags of the roles."
  type        = map(string)
  default     = {}
}
