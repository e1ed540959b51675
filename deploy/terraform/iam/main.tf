data "aws_caller_identity" "here" {}

data "aws_partition" "here" {}

data "aws_region" "here" {}

locals {
  at     = "${data.aws_region.here.region}:${data.aws_caller_identity.here.account_id}"
  arn    = "arn:${data.aws_partition.here.partition}"
  suffix = data.aws_partition.here.dns_suffix

  table = {
    Sid    = "RelayTable"
    Effect = "Allow"
    Action = [
      "dynamodb:BatchGetItem", "dynamodb:DeleteItem", "dynamodb:GetItem", "dynamodb:PutItem", "dynamodb:Query", "dynamodb:UpdateItem",
    ]
    Resource = ["${local.arn}:dynamodb:${local.at}:table/${var.table}", "${local.arn}:dynamodb:${local.at}:table/${var.table}/index/*"]
  }
  queues = {
    Sid    = "RelayQueues"
    Effect = "Allow"
    Action = [
      "sqs:ChangeMessageVisibility", "sqs:DeleteMessage", "sqs:GetQueueAttributes", "sqs:GetQueueUrl", "sqs:ReceiveMessage", "sqs:SendMessage",
    ]
    Resource = "${local.arn}:sqs:${local.at}:${var.prefix}*"
  }
  # A queue of each server's own, in which it learns of the ends of jobs that it waits for.
  replies = {
    Sid      = "RelayReplies"
    Effect   = "Allow"
    Action   = ["sqs:CreateQueue", "sqs:DeleteQueue", "sqs:TagQueue"]
    Resource = "${local.arn}:sqs:${local.at}:${var.prefix}_reply_*"
  }
  keys = {
    Sid       = "RelayKeys"
    Effect    = "Allow"
    Action    = ["kms:Decrypt", "kms:DescribeKey", "kms:Encrypt", "kms:GenerateDataKey", "kms:ReEncrypt*"]
    Resource  = sort(var.kms_key_arns)
    Condition = { StringLike = { "kms:ViaService" = ["dynamodb.${data.aws_region.here.region}.${local.suffix}", "sqs.${data.aws_region.here.region}.${local.suffix}"] } }
  }
  lengths = {
    Sid      = "RelayLengths"
    Effect   = "Allow"
    Action   = ["sqs:GetQueueAttributes"]
    Resource = "${local.arn}:sqs:${local.at}:${var.prefix}*"
  }

  # jsonencode makes a text of each, since statements of different shapes have no common type.
  with_keys = length(var.kms_key_arns) == 0 ? [] : [jsonencode(local.keys)]
  statements = {
    serving = concat([jsonencode(local.table), jsonencode(local.queues), jsonencode(local.replies)], local.with_keys)
    working = concat([jsonencode(local.table), jsonencode(local.queues)], local.with_keys)
    keda    = [jsonencode(local.lengths)]
  }
  accounts = { for role, account in var.service_accounts : role => account if account != null }
}

resource "aws_iam_role" "each" {
  for_each    = local.accounts
  name        = "${var.name}-${each.key}"
  description = "Relay on SQS and DynamoDB: ${each.key}"
  tags        = var.tags

  assume_role_policy = jsonencode({
    Version = "2012-10-17"
    Statement = [{
      Effect    = "Allow"
      Principal = { Service = "pods.eks.amazonaws.com" }
      Action    = ["sts:AssumeRole", "sts:TagSession"]
    }]
  })
}

resource "aws_iam_role_policy" "each" {
  for_each = local.accounts
  name     = "relay"
  role     = aws_iam_role.each[each.key].id
  policy   = jsonencode({ Version = "2012-10-17", Statement = [for statement in local.statements[each.key] : jsondecode(statement)] })
}

resource "aws_eks_pod_identity_association" "each" {
  for_each        = var.cluster_name == null ? {} : local.accounts
  cluster_name    = var.cluster_name
  namespace       = each.key == "keda" ? var.keda_namespace : var.namespace
  service_account = each.value
  role_arn        = aws_iam_role.each[each.key].arn
  tags            = var.tags
}
